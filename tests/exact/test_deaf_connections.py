"""A rank whose connection does not tell it that another one was killed: gloo leaves alone who is about to send.

That takes a kill between a message that says "send" and the sending. The threads in which gloo hears that message are
held still (ptrace, of Linux) while rank 0 is killed.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.exact.launched import Launch
from tests.exact.trainings import newest_step, run_in, training_words
from tests.programs import TORCHRUN

pytestmark = pytest.mark.exact

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
"""Requests of ptrace(2)."""
EPOLL_WAIT = ("232", "281")
"""Numbers of epoll_wait and epoll_pwait on x86-64."""
ALL_THREADS = 0x40000000


def ptrace(request: int, thread: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.ptrace(ctypes.c_long(request), ctypes.c_long(thread), None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def listening_threads(process: int) -> list[int]:
    calls = {int(one.name): (one / "syscall").read_text().split()[0] for one in Path(f"/proc/{process}/task").iterdir()}
    return [thread for thread, call in calls.items() if call in EPOLL_WAIT]


@contextmanager
def held(threads: list[int]) -> Iterator[None]:
    for thread in threads:
        ptrace(SEIZE, thread)
        ptrace(INTERRUPT, thread)
        os.waitpid(thread, ALL_THREADS)
    try:
        yield
    finally:
        for thread in threads:
            ptrace(DETACH, thread)


@pytest.mark.skipif(os.uname().machine != "x86_64" or os.geteuid() != 0, reason="ptrace, by root, on x86-64")
@pytest.mark.grid
def test_a_rank_that_gloo_does_not_wake_names_the_killed_one_before_torchrun_ends_it(
    launch: Launch, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    launched = launch(TORCHRUN, training_words(town, run, "steps=1000"))
    launched.wait_until(lambda: newest_step(run) > 0)
    ranks = launched.ranks()
    threads = listening_threads(ranks[1].pid)
    assert threads
    with held(threads):
        # In which rank 1 comes to its next collective, and rank 0 says that it may send.
        time.sleep(0.3)
        ranks[0].kill()
        ranks[0].wait(10)
    assert launched.exit_code() == 1
    assert "error (rank 1): " in launched.output(), launched.output()
    assert "rank 0 (last at " in launched.output()
    assert "does not answer any more: killed, or stopped" in launched.output()
