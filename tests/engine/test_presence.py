"""What a rank can tell of another that is missing: two of them in one process, with a real store."""

import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import PrefixStore, TCPStore

from esl_dist.command_line import EXIT_LOST_RANK
from esl_dist.engine import presence
from esl_dist.engine.presence import Presence

BEAT, SILENT = 0.02, 0.3
LONG = 1000.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", BEAT)
    monkeypatch.setattr(presence, "SILENT_SECONDS", SILENT)


@pytest.fixture
def master() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def join(master: TCPStore, rank: int, timeout_seconds: float = LONG) -> Presence:
    client = TCPStore("127.0.0.1", master.port, is_master=False, timeout=timedelta(seconds=5))
    return Presence(PrefixStore("presence", client), rank, 2, timeout_seconds)


@pytest.fixture
def ranks(master: TCPStore) -> Iterator[tuple[Presence, Presence]]:
    own, other = join(master, 0), join(master, 1)
    time.sleep(5 * BEAT)
    yield own, other
    own.stop()
    other.stop()


def test_nobody_is_missing_while_all_write_and_are_at_the_same_place(ranks: tuple[Presence, Presence]) -> None:
    own, other = ranks
    for number in range(3):
        for one in (own, other):
            with one.waiting(f"step {number}"):
                pass
    time.sleep(5 * BEAT)
    assert own.missing() is None
    assert other.missing() is None


def test_the_last_words_of_a_rank_are_passed_on(ranks: tuple[Presence, Presence]) -> None:
    own, other = ranks
    other.end_with(ValueError("shard-000001.tar is gone"))
    assert own.missing() == "rank 1 ended: shard-000001.tar is gone"


def test_an_error_without_words_is_named(ranks: tuple[Presence, Presence]) -> None:
    own, other = ranks
    other.end_with(StopIteration())
    assert own.missing() == "rank 1 ended: StopIteration"


def test_a_rank_that_writes_no_more_is_named_with_its_last_place(ranks: tuple[Presence, Presence]) -> None:
    own, other = ranks
    with other.waiting("step 7"):
        time.sleep(5 * BEAT)
    other.stop()
    found = own.missing()
    assert found is not None
    assert re.fullmatch(r"rank 1 \(last at step 7; tests/.*:\d+\) does not answer any more: killed, or stopped", found)


def test_a_rank_that_never_wrote_is_named(master: TCPStore) -> None:
    own = join(master, 0)
    assert own.missing() == "rank 1 (last at its start) does not answer any more: killed, or stopped"
    own.stop()


def test_a_rank_that_lives_and_does_not_come_is_named_with_both_places(ranks: tuple[Presence, Presence]) -> None:
    own, other = ranks
    for one in (own, other):
        with one.waiting("step 3"):
            pass
    with own.waiting("the sum of gradients"):
        time.sleep(5 * BEAT)
        found = own.missing()
        assert found is not None
        assert re.fullmatch(r"rank 1 \(last at step 3; .*\) has not come to the sum of gradients: it hangs", found)
        assert other.missing() is None, "nobody is behind the one that hangs"


def test_a_store_that_is_gone_is_said_to_be(master: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    own = join(master, 0)

    def gone(*_: object) -> None:
        raise RuntimeError("Connection reset\nmany lines")

    own.stop()
    monkeypatch.setattr(own, "_store", type("Gone", (), {"check": gone, "set": gone, "get": gone})())
    found = own.missing()
    assert found == (
        "the store of the ranks is lost (Connection reset), and with it rank 0 or the launcher that keeps it"
    )


def test_a_store_that_does_not_answer_stops_neither_the_clock_nor_the_program(
    master: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "ANSWER_SECONDS", 0.2)
    own = join(master, 0)
    release = threading.Event()

    def hangs(*_: object) -> None:
        release.wait(30)

    monkeypatch.setattr(own, "_store", type("Frozen", (), {"check": hangs, "set": hangs, "get": hangs})())
    found = own.missing()
    assert found is not None
    assert "the store of the ranks is lost (no answer)" in found
    own.stop()
    release.set()


def test_a_rank_that_gets_on_with_its_work_is_waited_for(master: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence.os, "_exit", lambda code: pytest.fail("gave up"))
    own, other = join(master, 0, timeout_seconds=0.4), join(master, 1)
    with own.waiting("the end"):
        for _ in range(40):
            other.worked()
            time.sleep(0.05)
    own.stop()
    other.stop()


def test_a_rank_that_waits_longer_than_the_timeout_ends_and_says_for_whom(
    master: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    given_up = threading.Event()

    def ended(code: int) -> None:
        codes.append(code)
        given_up.set()

    monkeypatch.setattr(presence.os, "_exit", ended)
    own, other = join(master, 0, timeout_seconds=0.2), join(master, 1)
    time.sleep(0.4)
    assert not given_up.is_set(), "a rank that computes may take its time"
    with own.waiting("step 5"):
        assert given_up.wait(30)
    own.stop()
    other.stop()
    assert codes[0] == EXIT_LOST_RANK
    said = capsys.readouterr().err
    assert said.startswith("error (rank 0): waited 0.2 seconds at step 5: rank 1 (last at the start; ")
    assert "has not come to step 5: it hangs" in said
