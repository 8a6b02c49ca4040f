"""What benchmarks that start the programs share: to start one on some ranks, on this machine or over a slow network."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from esl_dist.data.toytown import write_toytown
from esl_dist.stop_signals import run_to_its_end

PROJECT = Path(__file__).resolve().parents[1]

NETWORK = "10.213.7"
"""Of the two hosts of `slow_hosts`, that no other is likely to use."""


def run(program: str, words: Sequence[str], ranks: int = 1) -> None:
    """Run a program of the project on so many ranks; what it prints goes to standard error.

    What stops the benchmark stops the program first (`run_to_its_end`).

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(PROJECT / program), *words]
    if code := run_to_its_end(command, stdout=sys.stderr):
        raise subprocess.CalledProcessError(code, command)


def packed_toytown(folder: Path, size: tuple[int, int], counts: Mapping[str, int], processes: int = 1) -> Path:
    """Draw Toytown and pack it by so many processes, if that is not done; returns the folder of the splits' shards.

    Args:
        folder: of pictures and shards.
        size: width and height of the pictures.
        counts: pictures by split.
        processes: that pack.
    """
    pictures, shards = folder / "toytown", folder / f"shards_{processes}"
    if not pictures.exists():
        write_toytown(pictures, seed=0, counts=counts, width=size[0], height=size[1])
    for split in counts:
        if not (shards / split / "index.json").exists():
            words = [f"dataset={PROJECT}/configs/datasets/toytown.yaml", f"root={pictures}", f"split={split}"]
            words += [f"output={shards / split}", f"processes={processes}", "shard_megabytes=1"]
            run("shards/prepare.py", words)
    return shards


def output_of_first_rank(words: Sequence[str], ranks: int, hosts: Sequence[str] = ()) -> str:
    """Run a program as `ranks` processes and return what the first prints.

    Args:
        words: its file and command line.
        ranks: how many; a single one has no process group.
        hosts: network namespaces of `slow_hosts`, one a rank; none: all are on this machine.

    Raises:
        subprocess.CalledProcessError: a rank failed.
    """
    address, interface = (f"{NETWORK}.1", "slow") if hosts else ("127.0.0.1", "lo")
    meeting = {"MASTER_ADDR": address, "MASTER_PORT": "29613", "GLOO_SOCKET_IFNAME": interface}
    processes = []
    for rank in range(ranks):
        group = {**meeting, "RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        inside = ["ip", "netns", "exec", hosts[rank]] if hosts else []
        command = [*inside, sys.executable, *words]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **group}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return outputs[0]


@contextmanager
def slow_hosts(megabits: int) -> Iterator[list[str]]:
    """Make two hosts (network namespaces) whose link carries so many Mbit/s each way; needs root and iproute2."""
    names = ["esl-scaling-1", "esl-scaling-2"]
    try:
        for name in names:
            # One that a killed start has left.
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
            _ip("netns", "add", name)
        _ip("link", "add", "slow", "netns", names[0], "type", "veth", "peer", "name", "slow", "netns", names[1])
        for number, name in enumerate(names, 1):
            _ip("-n", name, "address", "add", f"{NETWORK}.{number}/24", "dev", "slow")
            for link in ("slow", "lo"):
                _ip("-n", name, "link", "set", link, "up")
            shape = ["tbf", "rate", f"{megabits}mbit", "burst", "32k", "latency", "50ms"]
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", "slow", "root", *shape], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
