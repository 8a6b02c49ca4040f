"""The programs in real processes, on a small Toytown."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from esl_dist.data.layouts import read_layout
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.toytown import write_toytown
from tests.on_ranks import PROJECT, shared_server

TOYTOWN = PROJECT / "configs/datasets/toytown.yaml"

TINY_TRAINING = (
    "network.architecture=tiny",
    "method.discriminator_channels=4",
    "optimizer.learning_rate=0.01",
    "batch_size=2",
    "loader.workers=0",
    "loader.shuffle_window=8",
    "log_every=2",
)


def small_town(
    folder: Path, source: int = 6, target: int = 6, shard_bytes: int = 20_000, width: int = 64, height: int = 32
) -> Path:
    """Draw and pack a small Toytown in several shards; returns the folder of its splits."""
    counts = {"source_train": source, "target_train": target, "target_val": 3}
    write_toytown(folder / "pictures", seed=1, counts=counts, width=width, height=height)
    for split in counts:
        layout = read_layout(TOYTOWN, split, folder / "pictures")
        encoding = Encoding(None, None, "keep", 95, shard_bytes)
        pack(layout, folder / "shards" / split, encoding, 1, lambda items, total, title: items)
    return folder / "shards"


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")


def command(program: str, *words: str, processes: int = 1, launcher: Sequence[str] = TORCHRUN) -> list[str]:
    """Return the command line of a program, behind `launcher` if there are several processes."""
    launch = ["-m", *launcher, str(processes)] if processes > 1 else []
    return [sys.executable, *launch, str(PROJECT / program), *words]


def environment(threads: int = 1) -> dict[str, str]:
    """Return this process's environment with a number of threads a rank."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def run(
    program: str, *words: str, processes: int = 1, folder: Path | None = None, threads: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in processes that have imported everything; the exit code is the first that is not 0.

    Several processes start as behind torchrun. Where the start itself matters, `command` gives its words.
    """
    job = shared_server().start(program, words, processes, {"OMP_NUM_THREADS": str(threads)}, folder=folder, apart=True)
    codes = job.exit_codes(300)
    assert job.printed is not None
    code = next(filter(None, codes), 0)
    return subprocess.CompletedProcess([program, *words], code, job.printed.read_text(), job.output())


def succeed(program: str, *words: str, processes: int = 1) -> str:
    """Run a program that must succeed; returns what it printed."""
    done = run(program, *words, processes=processes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def signal_when(process: subprocess.Popen[str], condition: Callable[[], bool], number: signal.Signals) -> int:
    """Send a signal as soon as `condition` holds; returns the exit code. The process must still be running then."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=60)
