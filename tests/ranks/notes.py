"""Ranks that exchange notes: several of them in one process, with real stores, and with short times."""

import time
from collections.abc import Callable

from esl_dist.ranks.heartbeat import Heartbeat

BEAT, SILENT = 0.05, 1.0
SOON, LONG = 1.5, 1000.0

Join = Callable[..., Heartbeat]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(BEAT)


def kill(one: Heartbeat) -> None:
    """End a rank's notes without a word, as a killed process does."""
    one._ended.set()
    for thread in one._threads:
        thread.join()


def gone_store() -> object:
    def gone(*_: object) -> None:
        raise RuntimeError("Connection reset\nmany lines")

    return type("Gone", (), {"check": gone, "set": gone, "get": gone, "compare_set": gone, "multi_get": gone})()
