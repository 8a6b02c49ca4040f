"""Ranks that start at once: forked from a process that has imported everything, and each as killable as any other.

A test that kills a training twenty times would spend its minutes importing torch. Run as a program, this file reads
jobs from standard input, one JSON line each, {"program", "words", "ranks"}. It answers with the processes' ids
and, once all have ended, with their exit codes.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[2]
CHANGED = "tests/exact/changed.py"


def has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass
class Job:
    """Ranks that run."""

    processes: list[int]
    server: "RankServer"
    log_start: int
    codes: list[int] | None = None

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.processes[rank], number)

    def kill_all(self) -> None:
        """Kill what still runs, as a launcher does when a rank has ended."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def has_ended(self, rank: int) -> bool:
        return has_ended(self.processes[rank])

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Return when `condition` holds; all ranks have to run until then."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert not any(self.has_ended(rank) for rank in range(len(self.processes))), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.001)

    def wait_for_end(self, rank: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not self.has_ended(rank):
            assert time.monotonic() < deadline, f"rank {rank} still runs: {self.output()}"
            time.sleep(0.01)

    def exit_codes(self, seconds: float = 120) -> list[int]:
        """Wait for the end of all ranks; the code of a killed one is the signal's, negative."""
        if self.codes is None:
            self.codes = self.server.answer(seconds)["codes"]
        return self.codes

    def output(self) -> str:
        """Return what all ranks have printed so far."""
        return self.server.log.read_bytes()[self.log_start :].decode()


class RankServer:
    """Starts ranks of the project's programs, one job at a time."""

    def __init__(self, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "MASTER_ADDR": "127.0.0.1"}
        # Else a line and its end are written apart, and the lines of two ranks run into each other.
        environment.pop("PYTHONUNBUFFERED", None)
        self.log = log
        self.job: Job | None = None
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
                bufsize=1,
            )

    def __enter__(self) -> "RankServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_job()
        self.process.kill()
        self.process.wait()

    def _end_job(self) -> None:
        """Leave nothing behind of a test that failed."""
        if self.job is not None and self.job.codes is None:
            self.job.kill_all()
            self.job.exit_codes()

    def start(
        self, program: str, words: Sequence[str], ranks: int, environment: Mapping[str, str] | None = None
    ) -> Job:
        """Start a program of the project on so many ranks; `environment` is added to that of this process."""
        self._end_job()
        assert self.process.stdin is not None
        log_start = self.log.stat().st_size
        job = {"program": program, "words": list(words), "ranks": ranks, "environment": dict(environment or {})}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.job = Job(self.answer(60)["processes"], self, log_start)
        return self.job

    def run(self, program: str, words: Sequence[str], ranks: int) -> list[int]:
        return self.start(program, words, ranks).exit_codes()

    def answer(self, seconds: float) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"no answer in {seconds:g} seconds: {self.log.read_text()}"
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _become_rank(program: str, words: list[str], rank: int, ranks: int, port: int) -> int:
    os.dup2(2, 1)
    if ranks > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()}, ACCELERATE_USE_CPU="true")
    # A shell starts its background jobs, and with them these tests, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [program, *words]
    try:
        runpy.run_path(str(PROJECT / program), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    # Imported here and not by the ranks: what they share they need not load.
    import torchvision  # noqa: F401

    import esl_dist.inference.labelling
    import esl_dist.inference.scoring
    import esl_dist.training.loop  # noqa: F401

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        processes = []
        for rank in range(job["ranks"]):
            process = os.fork()
            if process == 0:
                os.environ.update(job["environment"])
                code = _become_rank(job["program"], job["words"], rank, job["ranks"], port)
                sys.stderr.flush()
                os._exit(code)
            processes.append(process)
        answers.write(json.dumps({"processes": processes}) + "\n")
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        answers.write(json.dumps({"codes": codes}) + "\n")


if __name__ == "__main__":
    main()
