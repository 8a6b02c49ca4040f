"""A torchrun that waits without end for the store of another machine, and does not see that its ranks have ended.

With `--rdzv_backend c10d` torchrun asks the store ten times a second whether machines have come, in a call without a
timeout that no signal interrupts. Where the network is cut, or the other machine is gone without a word, it stays in
that call until the kernel gives the connection up, by default a quarter of an hour later (`tcp_retries2` in the
kernel's ip-sysctl). A rank that ends leaves a process behind that looks whether torchrun has taken note, and kills it
if not.

Run as a program, `-m esl_dist.ranks.stuck_launcher RANK PROCESS LAUNCHER`, this file is that process.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from esl_dist.environment import MOST_RANKS, started_by_torchrun, whole_number

NOTED_SECONDS = 10.0
"""In which a torchrun that works has taken note of the end of a rank: many of its rounds."""

END_SECONDS = 60.0
"""In which a rank that said its last words ends."""


def watch_launcher(rank: int) -> None:
    """Leave a process that kills torchrun if it does not note that this rank ends, where it has several machines."""
    if not started_by_torchrun() or whole_number("GROUP_WORLD_SIZE", 1, MOST_RANKS) in (None, 1):
        return
    words = [sys.executable, "-m", __name__, str(rank), str(os.getpid()), str(os.getppid())]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    # Where no process can be started, the rank ends all the same.
    with suppress(OSError):
        subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def main(rank: int, process: int, launcher: int) -> None:
    """Wait for the end of a rank's process, and for the launcher to take note; kill one that does not."""
    with suppress(psutil.NoSuchProcess):
        ended, torchrun = psutil.Process(process), psutil.Process(launcher)
        deadline = time.monotonic() + END_SECONDS
        while ended.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(NOTED_SECONDS / 50)
        time.sleep(NOTED_SECONDS)
        # A parent that has taken note leaves no zombie.
        if ended.status() == psutil.STATUS_ZOMBIE and ended.ppid() == launcher:
            sys.stderr.write(
                "note: torchrun was killed, for it waits without end for the machine that keeps its store, and does "
                f"not see that its rank {rank} has ended; with --node_rank, --master_addr and --master_port in place "
                "of --rdzv_backend and --rdzv_endpoint it does not wait\n"
            )
            torchrun.kill()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
