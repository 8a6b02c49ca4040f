"""What tests of ranks share."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import PrefixStore, TCPStore

from esl_dist.ranks import heartbeat
from esl_dist.ranks.heartbeat import Heartbeat, Progress
from tests.ranks.notes import BEAT, LONG, SILENT, Join


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", BEAT)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", SILENT)


@pytest.fixture
def exit_codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the codes with which ranks would end their processes."""
    codes: list[int] = []

    monkeypatch.setattr(heartbeat.os, "_exit", codes.append)
    return codes


@pytest.fixture
def master() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def join(master: TCPStore, _soon: None) -> Iterator[Join]:
    """Return what lets a rank begin to exchange notes."""
    joined: list[Heartbeat] = []

    def start(rank: int, ranks: int = 2, timeout_seconds: float = LONG) -> Heartbeat:
        client = TCPStore("127.0.0.1", master.port, is_master=False, timeout=timedelta(seconds=5))
        joined.append(Heartbeat(PrefixStore("attempt", client), rank, ranks, timeout_seconds, Progress()))
        return joined[-1]

    yield start
    for one in joined:
        one.stop()
