"""Ctrl-C as a person presses it: on a terminal, or before a launcher and all that it started."""

import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from esl_dist.command_line import EXIT_INTERRUPTED
from esl_dist.runs.run_record import RUN_RECORD, read_record
from esl_dist.training.stop_request import END_SECONDS, ONE_PRESS_SECONDS
from tests.exact.trainings import TRAIN, assert_whole, newest_step, run_in, training_words
from tests.on_ranks import CHANGED, PROJECT
from tests.programs import command, environment

pytestmark = pytest.mark.exact

ENDLESS = ("steps=1000", "checkpoints.every=1000", "log_every=1")
NOTICE = "interrupted: finishing the step and saving; press again to end at once"
HANGING_SAVE = """
import time
from esl_dist.runs import async_save
async_save.save_checkpoint = lambda *_: time.sleep(600)
"""


class Group:
    """A program and all that a terminal would interrupt with it."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.log = log
        with open(log, "wb") as file:
            self.process = psutil.Popen(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
                # A shell starts its background jobs, and with them these tests, deaf to Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 100
        while text not in self.output():
            assert self.process.is_running(), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.005)

    def press_ctrl_c(self) -> None:
        """Interrupt all but the ranks of torchrun, which have sessions of their own; it passes the signal on."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Sequence[str]], Group]]:
    groups: list[Group] = []

    def start(words: Sequence[str]) -> Group:
        groups.append(Group(words, tmp_path / f"log_{len(groups)}"))
        return groups[-1]

    yield start
    for one in groups:
        for process in [*one.process.children(recursive=True), one.process] if one.process.is_running() else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()


Start = Callable[[Sequence[str]], Group]


def test_one_ctrl_c_before_torchrun_is_one_to_its_ranks_and_saves(start: Start, town: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    group = start(command(TRAIN, *training_words(town, run, *ENDLESS), processes=2))
    group.wait_for("r: 2/1000 steps")
    behind = group.process.children(recursive=True)
    group.press_ctrl_c()
    _, alive = psutil.wait_procs([*behind, group.process], timeout=60)
    assert alive == [], group.output()
    step = newest_step(run)
    assert_whole(run, step)
    assert group.output().count(NOTICE) == 1
    for rank in (0, 1):
        said = f"interrupted (rank {rank}): r: saved at step {step}; the same command goes on from there\n"
        assert group.output().count(said) == 1, group.output()
    [noted] = read_record(run / RUN_RECORD)
    assert (noted.state, noted.exit_code, noted.step, noted.processes) == ("interrupted", EXIT_INTERRUPTED, step, 2)


@pytest.mark.grid
def test_a_second_ctrl_c_before_torchrun_ends_ranks_that_wait_for_their_disk(
    start: Start, town: Path, tmp_path: Path
) -> None:
    """It gives them half a minute otherwise."""
    run = run_in(tmp_path)
    words = [HANGING_SAVE, str(PROJECT / TRAIN), *training_words(town, run, *ENDLESS)]
    group = start(command(CHANGED, *words, processes=2))
    group.wait_for("r: 2/1000 steps")
    behind = group.process.children(recursive=True)
    group.press_ctrl_c()
    group.wait_for(NOTICE)
    time.sleep(ONE_PRESS_SECONDS)
    group.press_ctrl_c()
    _, alive = psutil.wait_procs([*behind, group.process], timeout=END_SECONDS + 15)
    assert alive == [], group.output()
    assert newest_step(run) == 0


@pytest.mark.timeout(100)
def test_on_a_terminal_the_bar_shows_the_losses_and_ctrl_c_saves(town: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    # It has no size, as those of containers may have none.
    terminal, end = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fcntl.ioctl(end, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command(TRAIN, *training_words(town, run, *ENDLESS)),
        stdin=end,
        stdout=end,
        stderr=end,
        env=environment(),
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(end)
    shown, pressed = b"", False
    # The end of a terminal whose last process has ended is an error.
    with suppress(OSError):
        while part := os.read(terminal, 4096):
            shown += part
            if not pressed and b"source_cross_entropy" in shown:
                os.write(terminal, b"\x03")
                pressed = True
    os.close(terminal)
    assert process.wait(60) == EXIT_INTERRUPTED, shown.decode()
    text = shown.decode()
    assert "r: " in text
    assert "step/s" in text
    assert "samples/s" not in text, "no lines beside the bar"
    assert NOTICE in text
    assert f"interrupted: r: saved at step {newest_step(run)}; the same command goes on from there" in text
    assert "Traceback" not in text
    assert newest_step(run) > 0
