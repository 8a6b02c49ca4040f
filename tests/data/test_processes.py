"""Processes give results in order, end with a message when one dies, and never outlive who started them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from esl_dist.data import processes
from esl_dist.data.processes import affordable, in_order, worker_processes
from esl_dist.errors import UserError
from tests.builders import draw, encoded
from tests.data.work import end_by, negative, sleep_long
from tests.programs import PROJECT


def test_results_come_in_order_and_few_are_ahead() -> None:
    begun = 0

    def numbers() -> Iterator[int]:
        nonlocal begun
        for number in range(10):
            begun += 1
            yield number

    with ThreadPoolExecutor(1) as executor:
        for position, result in enumerate(in_order(executor, 3, negative, numbers())):
            assert result == -position
            assert begun <= position + 3


def test_processes_give_their_results_and_end() -> None:
    with worker_processes(2) as run:
        assert list(run(negative, range(50))) == [-number for number in range(50)]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (-signal.SIGKILL, r"was killed, perhaps for want of memory: take fewer processes, by processes=… \(now 2\)"),
        (-signal.SIGSEGV, "was ended by SIGSEGV in the middle of its work"),
        (3, "ended with code 3 in the middle of its work"),
    ],
)
def test_a_dead_process_is_a_message(number: int, message: str) -> None:
    with pytest.raises(UserError, match=f"a packing process {message}"), worker_processes(2) as run:
        list(run(end_by, [number] * 9))
    assert multiprocessing.active_children() == []


def test_an_exception_ends_processes_in_the_middle_of_their_work() -> None:
    def stopped(numbers: Iterator[int]) -> Iterator[int]:
        yield from numbers
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), worker_processes(2) as run:
        list(run(sleep_long, stopped(iter(range(3)))))
    assert multiprocessing.active_children() == []


def test_processes_that_cannot_be_started_are_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", no_more)
    message = r"7 packing processes cannot be started \(Resource .*\); take fewer"
    with pytest.raises(UserError, match=message), worker_processes(7):
        pass


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = tmp_path / "start.py"
    program.write_text(
        "import os, sys, time\nfrom esl_dist.data.processes import worker_processes\n"
        "def own_id(_):\n    return os.getpid()\n"
        "if __name__ == '__main__':\n    with worker_processes(1) as run:\n"
        "        print(*run(own_id, [0]), flush=True)\n        time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        pid = int(started.stdout.readline())
        assert psutil.pid_exists(pid)
        started.kill()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it outlives who started it"
        time.sleep(0.01)


def test_fewer_processes_are_started_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken file is no picture, whatever its size; the check will say so."""
    (tmp_path / "small.png").write_bytes(encoded(draw(0, 100, 50)[0]))
    (tmp_path / "large.png").write_bytes(encoded(draw(0, 1000, 500)[0]))
    (tmp_path / "broken.png").write_bytes(b"x")
    for free, limit, expected in ((10**12, 10**6, 4), (450 * 10**6, 10**6, 2), (450 * 10**6, 10**4, 2), (1, 10**6, 1)):
        monkeypatch.setattr(processes, "free_memory", lambda free=free: free)
        assert affordable(4, tmp_path.iterdir(), limit) == expected
        warning = capsys.readouterr().err
        assert (f"warning: {expected} of 4 packing processes are started" in warning) == (expected < 4)
        assert ("(0.5 megapixels)" in warning) == (expected < 4 and limit == 10**6)
