"""A launcher with two ranks of a training, as tests start, watch and kill it."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.exact.trainings import TRAIN
from tests.programs import command, environment


class Launched:
    """A launcher with two ranks of a training."""

    def __init__(self, launcher: Sequence[str], words: Sequence[str], log: Path) -> None:
        self.log = log
        with open(log, "wb") as file:
            self.process = psutil.Popen(
                command(TRAIN, *words, processes=2, launcher=launcher),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(),
            )

    def output(self) -> str:
        return self.log.read_text()

    def ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for process in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(word.endswith(TRAIN) for word in process.cmdline()) and "RANK" in process.environ():
                    # Readers that it has forked have the same words; parents come first.
                    found.setdefault(int(process.environ()["RANK"]), process)
        return found

    def wait_until(self, condition: Callable[[], bool], seconds: float = 100) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.001)

    def exit_code(self) -> int:
        code: int = self.process.wait(100)
        return code


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[Sequence[str], Sequence[str]], Launched]]:
    started: list[Launched] = []

    def start(launcher: Sequence[str], words: Sequence[str]) -> Launched:
        started.append(Launched(launcher, words, tmp_path / f"log_{len(started)}"))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            for process in [*one.process.children(recursive=True), one.process]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


Launch = Callable[[Sequence[str], Sequence[str]], Launched]
