"""A rank that `srun` started itself: what SLURM says of a step's tasks, in the words of torchrun's variables.

Each task of a step is a rank. SLURM's manual (srun, "output environment variables") says what its variables hold; all
are the step's, which may be smaller than its job. What is given by other means stays: torchrun or mpirun inside of a
step number their own processes.
"""

import os
import re
import socket
import subprocess
from contextlib import suppress

from esl_dist.environment import MOST_RANKS, RANK, WORLD_SIZE, first_number, whole_number
from esl_dist.errors import UserError

PORTS = range(15000, 30000)
"""Below those that Linux gives to connections of its own accord."""

SCONTROL_SECONDS = 20.0


def adopt_step() -> None:
    """Set what is not set of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT from SLURM's.

    Nothing is set outside of a step of several tasks, or where the rank that is given is not that of the task.

    Raises:
        UserError: a variable of SLURM's that is no number, or out of range.
    """
    world_size = whole_number("SLURM_STEP_NUM_TASKS", 1, MOST_RANKS) or 1
    if world_size == 1 or (rank := whole_number("SLURM_PROCID", 0, world_size - 1)) is None:
        return
    if first_number(WORLD_SIZE, 1, MOST_RANKS) not in (None, world_size):
        return
    if first_number(RANK, 0, MOST_RANKS) not in (None, rank):
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    job, step = (whole_number(f"SLURM_{one}_ID", 0, 2**40) or 0 for one in ("JOB", "STEP"))
    variables = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": whole_number("SLURM_LOCALID", 0, world_size - 1),
        "LOCAL_WORLD_SIZE": _tasks_of_node(whole_number("SLURM_NODEID", 0, MOST_RANKS) or 0),
        "MASTER_PORT": port_of(job, step),
    }
    for variable, value in variables.items():
        if value is not None:
            os.environ.setdefault(variable, str(value))
    if nodes and "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _address_of(first_node(nodes))


def port_of(job: int, step: int) -> int:
    """Return where the ranks of a step meet: the same on all of them, another for the steps of one job."""
    return PORTS[(61 * job + step) % len(PORTS)]


def first_node(nodes: str) -> str:
    """Return the first name of a list of SLURM's: `gpu[03-05,9],cpu1` → `gpu03`."""
    # A comma outside of brackets ends the first part.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", "" if first is None else first[0])


def _tasks_of_node(node: int) -> int | None:
    """Read `2(x3),1`, the tasks of each node of a step; None where it says nothing of this one."""
    counts: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"([0-9]{1,7})(?:\(x([0-9]{1,7})\))?", part)
        if found is None:
            return None
        # More nodes than up to this one are not asked for.
        counts += [int(found[1])] * min(int(found[2] or 1), node + 1)
    return counts[node] if node < len(counts) else None


def _address_of(node: str) -> str:
    """Return a name or address that other machines can reach: SLURM's names of nodes need not be known elsewhere."""
    with suppress(OSError, UnicodeError):
        socket.getaddrinfo(node, None)
        return node
    words = ["scontrol", "show", "node", node, "--oneliner"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=SCONTROL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"the name of the step's first node, {node}, has no address here, and scontrol does not say one ({error}); "
            "set MASTER_ADDR to the address of that node"
        ) from error
    found = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return node if found is None else found[1]
