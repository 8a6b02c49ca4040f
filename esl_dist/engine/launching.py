"""Start the processes that `accelerate launch --cpu --num_processes N` was asked for and does not start.

Without mpirun, Accelerate's launcher for CPUs starts one process whatever N is, and says nothing (its issue 2741). A
run on one process where several were asked for is a silent mistake, so that process starts the N ranks with torchrun.
"""

import os
import sys

import psutil
from accelerate.utils.environment import get_cpu_distributed_information
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from esl_dist.errors import UserError


def start_missing_processes() -> None:
    """Become the launcher of N ranks where Accelerate's launcher started one of N; else return at once.

    Raises:
        UserError: N cannot be found out.
    """
    # The launcher sets MASTER_PORT only for several processes, and WORLD_SIZE only where it starts them all.
    alone = "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ
    if not alone or get_cpu_distributed_information().world_size > 1:
        return
    processes = _asked_processes(psutil.Process().parent())
    if processes is None:
        raise UserError(
            "accelerate launch --cpu started one process where several were asked for; start them with "
            "torchrun --nproc_per_node N instead"
        )
    try:
        torchrun(["--standalone", "--nproc_per_node", str(processes), *sys.argv])
    except ChildFailedError as error:
        sys.exit(next(iter(error.failures.values())).exitcode)
    sys.exit(0)


def _asked_processes(launcher: psutil.Process | None) -> int | None:
    """Return what stands behind --num_processes in the launcher's command line."""
    words = [] if launcher is None else [part for word in launcher.cmdline() for part in word.split("=", 1)]
    for option in ("--num_processes", "--num-processes"):
        if option in words and words[words.index(option) + 1 :][:1]:
            number = words[words.index(option) + 1]
            return int(number) if number.isdigit() else None
    return None
