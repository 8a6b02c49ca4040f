"""A launcher that takes no note of the end of its rank is killed, another is left alone: real processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from esl_dist.ranks import stuck_launcher
from esl_dist.ranks.stuck_launcher import main, watch_launcher

LAUNCHER = "import subprocess, time; rank = subprocess.Popen(['true']); print(rank.pid, flush=True); {}; time.sleep(60)"
Start = Callable[[str], tuple[subprocess.Popen[str], int]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck_launcher, "NOTED_SECONDS", 0.5)


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a launcher; it returns that and its rank's process."""
    started: list[subprocess.Popen[str]] = []

    def launcher(what_it_does: str) -> tuple[subprocess.Popen[str], int]:
        words = [sys.executable, "-c", LAUNCHER.format(what_it_does)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        return started[-1], int(started[-1].stdout.readline())

    yield launcher
    for one in started:
        one.kill()
        one.communicate()


def test_a_launcher_that_takes_no_note_is_killed_with_a_word(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    launcher, rank = start("0")
    main(3, rank, launcher.pid)
    assert launcher.wait(10) == -9
    said = capsys.readouterr().err
    assert said.startswith("note: torchrun was killed")
    assert "its rank 3 has ended; with --node_rank, --master_addr and --master_port" in said


def test_a_launcher_that_takes_note_is_left_alone(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    launcher, rank = start("rank.wait()")
    main(3, rank, launcher.pid)
    assert launcher.poll() is None
    assert capsys.readouterr().err == ""


def test_a_rank_that_does_not_end_leaves_its_launcher(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stuck_launcher, "END_SECONDS", 0.1)
    launcher, _ = start("0")
    with subprocess.Popen(["sleep", "60"]) as rank:
        main(3, rank.pid, launcher.pid)
        rank.kill()
    assert launcher.poll() is None


@pytest.mark.parametrize(
    ("variables", "starts"),
    [
        ({}, False),
        ({"GROUP_WORLD_SIZE": "2"}, False),
        ({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"}, True),
    ],
)
def test_only_a_torchrun_of_several_machines_is_watched(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], starts: bool
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    watch_launcher(1)
    watching = [one for one in psutil.Process().children() if "esl_dist.ranks.stuck_launcher" in one.cmdline()]
    assert bool(watching) == starts
    for one in watching:
        assert one.cmdline()[-3:] == ["1", str(os.getpid()), str(os.getppid())]
        # It has imported what it needs, and waits.
        assert _lives(one)
        one.kill()
        one.wait()


def _lives(process: psutil.Process, seconds: float = 10.0) -> bool:
    """Return whether a process comes to wait, and does not end with an error."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.status() == psutil.STATUS_SLEEPING and process.cpu_times().user > 0.02:
            return True
        time.sleep(0.02)
    return False
