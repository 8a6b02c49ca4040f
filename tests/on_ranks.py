"""Ranks for tests: programs and functions on real processes that start at once and are as killable as any other.

They are forked from a process that has imported everything: a test that kills a training twenty times would else spend
its minutes importing torch. `run_on_ranks` calls a function on ranks that can sum; a `RankServer` starts programs.

Run as a program, this file is that process: it reads jobs from standard input, one JSON line each (the fields that
`RankServer.start` writes). It answers with the processes' ids and, once all have ended, with their exit codes.
"""

import functools
import importlib
import json
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

PROJECT = Path(__file__).resolve().parents[1]
CHANGED = "tests/exact/changed.py"

Result = TypeVar("Result")


def run_on_ranks(function: Callable[..., Result], *arguments: Any, ranks: int = 2) -> list[Result]:
    """Call a function of a module on gloo ranks; returns what each of them returned.

    What fails on one rank fails here, with that rank's traceback. A single rank has no process group.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call"
        call.write_bytes(pickle.dumps((function, arguments)))
        job = shared_server().start("tests/call_on_rank.py", [str(call)], ranks)
        assert job.exit_codes(600) == [0] * ranks, job.output()
        return [pickle.loads(Path(f"{call}.{rank}").read_bytes()) for rank in range(ranks)]


@functools.cache
def shared_server() -> "RankServer":
    """Return the server of this test process; it starts when it is asked for first."""
    return RankServer()


def close_shared_server() -> None:
    if shared_server.cache_info().currsize:
        shared_server().close()
        shared_server.cache_clear()


def has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass
class Job:
    """Ranks that run.

    `log` has what they print, `printed` what of it goes to standard output if that is kept apart.
    """

    processes: list[int]
    server: "RankServer"
    log: Path
    printed: Path | None
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
        return self.log.read_bytes().decode()


class RankServer:
    """Starts ranks of the project's programs, one job at a time; what is in `modules` is imported before, too."""

    def __init__(self, *modules: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.log = Path(self.folder.name) / "server"
        self.job: Job | None = None
        self.jobs = 0
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.on_ranks", *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=_environment({}),
                text=True,
                bufsize=1,
            )

    def __enter__(self) -> "RankServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._end_job()
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def _end_job(self) -> None:
        """Leave nothing behind of a test that failed."""
        if self.job is not None and self.job.codes is None:
            self.job.kill_all()
            self.job.exit_codes()

    def start(
        self,
        program: str,
        words: Sequence[str],
        ranks: int,
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        apart: bool = False,
    ) -> Job:
        """Start a program of the project on so many ranks.

        Args:
            program: its file, relative to the project.
            words: its command line.
            ranks: how many.
            environment: is added to that of this process.
            folder: in which it is started; by default that of this process.
            apart: keep standard output apart from standard error.
        """
        self._end_job()
        self.jobs += 1
        self.log = Path(self.folder.name) / str(self.jobs)
        self.log.touch()
        printed = self.log.with_suffix(".out") if apart else None
        assert self.process.stdin is not None
        job = {
            "program": program,
            "words": list(words),
            "ranks": ranks,
            "environment": _environment(environment or {}),
            "folder": str(folder or Path.cwd()),
            "stdout": str(printed or self.log),
            "stderr": str(self.log),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.job = Job(self.answer(60)["processes"], self, self.log, printed)
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


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    # Packages may have been carried to where these tests run, and be found by it alone.
    carried = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys([str(PROJECT), *filter(None, carried)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **added}
    # Else a line and its end are written apart, and the lines of two ranks run into each other.
    environment.pop("PYTHONUNBUFFERED", None)
    return environment


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _become_rank(job: dict[str, Any], rank: int, port: int) -> int:
    for place, name, flags in ((0, os.devnull, os.O_RDONLY), (1, job["stdout"], _APPEND), (2, job["stderr"], _APPEND)):
        os.dup2(os.open(name, flags, 0o600), place)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    if (ranks := job["ranks"]) > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in numbers.items()}, ACCELERATE_USE_CPU="true")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # A shell starts its background jobs, and with them these tests, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = str(PROJECT / job["program"])
    sys.argv = [program, *job["words"]]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    # What is imported may print.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Imported here and not by the ranks: what they share they need not load.
    # What compiles takes it along where it is installed.
    with suppress(ImportError):
        import torchvision  # noqa: F401

    import PIL.Image

    import esl_dist.inference.labelling
    import esl_dist.inference.scoring
    import esl_dist.training.loop  # noqa: F401

    PIL.Image.init()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        processes = []
        for rank in range(job["ranks"]):
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    code = _become_rank(job, rank, port)
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            processes.append(process)
        answers.write(json.dumps({"processes": processes}) + "\n")
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        answers.write(json.dumps({"codes": codes}) + "\n")


if __name__ == "__main__":
    main()
