"""Ranks that start at once: forked from a process that has imported everything, and each as killable as any other.

A test that kills a training twenty times would spend its minutes importing torch. Run as a program, this file reads
jobs from standard input, one JSON line each, {"program", "words", "ranks"}; it answers with the processes' ids and, once
all have ended with their exit codes.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Job:
    """Ranks that run."""

    processes: list[int]
    server: "RankServer"

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.processes[rank], number)

    def exit_codes(self) -> list[int]:
        """Wait for the end of all ranks; the code of a killed one is the signal's, negative."""
        codes: list[int] = self.server.answer()["codes"]
        return codes


class RankServer:
    """Starts ranks of the project's programs, one job at a time."""

    def __init__(self, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "MASTER_ADDR": "127.0.0.1"}
        self.log = log
        with open(log, "wb") as file:
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
        self.process.kill()
        self.process.wait()

    def start(self, program: str, words: Sequence[str], ranks: int) -> Job:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"program": program, "words": list(words), "ranks": ranks}) + "\n")
        return Job(self.answer()["processes"], self)

    def run(self, program: str, words: Sequence[str], ranks: int) -> list[int]:
        return self.start(program, words, ranks).exit_codes()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _become_rank(program: str, words: list[str], rank: int, ranks: int, port: int) -> int:
    os.dup2(2, 1)
    if ranks > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()}, ACCELERATE_USE_CPU="true")
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

    import esl_dist.engine.scoring
    import esl_dist.engine.trainer  # noqa: F401

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        port = _free_port()
        processes = []
        for rank in range(job["ranks"]):
            process = os.fork()
            if process == 0:
                code = _become_rank(job["program"], job["words"], rank, job["ranks"], port)
                sys.stderr.flush()
                os._exit(code)
            processes.append(process)
        answers.write(json.dumps({"processes": processes}) + "\n")
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        answers.write(json.dumps({"codes": codes}) + "\n")


if __name__ == "__main__":
    main()
