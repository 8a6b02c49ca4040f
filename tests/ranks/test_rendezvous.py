"""Where ranks meet: real stores, every rank a thread with a connection of its own."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import TCPStore

from esl_dist.environment import RANK
from esl_dist.errors import LostRankError, UserError
from esl_dist.ranks import rendezvous
from esl_dist.ranks.rendezvous import _join, meet

SOON, LONG = 0.5, 30.0

Join = Callable[..., "Future[str]"]


@pytest.fixture
def join() -> Iterator[Join]:
    """Return a function that lets a rank join, in the store of a launcher."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor() as threads:

        def start(rank: int, ranks: int, seconds: float = LONG) -> "Future[str]":
            client = TCPStore("127.0.0.1", store.port, is_master=False)
            return threads.submit(_join, client, rank, ranks, time.monotonic() + seconds)

        yield start


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_all_ranks_join_one_attempt_in_any_order(join: Join, order: list[int]) -> None:
    attempts = {}
    for rank in order:
        attempts[rank] = join(rank, 3)
        time.sleep(0.2)
    assert len({attempt.result() for attempt in attempts.values()}) == 1


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
@pytest.mark.parametrize("came", [[0, 1, 2], [0, 1], [1, 2]])
def test_the_name_of_an_earlier_attempt_is_not_taken_for_the_present_one(
    join: Join, came: list[int], order: list[int]
) -> None:
    for attempt in [join(rank, 3, LONG if len(came) == 3 else SOON) for rank in came]:
        attempt.exception()
    attempts = {}
    for rank in order:
        assert not any(attempt.done() for attempt in attempts.values())
        attempts[rank] = join(rank, 3)
        time.sleep(0.2)
    assert len({attempt.result() for attempt in attempts.values()}) == 1


@pytest.mark.parametrize(("came", "named"), [([0, 2], "rank 1"), ([0], "rank 1, rank 2"), ([1, 2], "rank 0")])
def test_those_who_do_not_come_are_named_to_all(join: Join, came: list[int], named: str) -> None:
    for attempt in [join(rank, 3, SOON) for rank in came]:
        with pytest.raises(LostRankError, match=f"^{named} did not come to the start within timeout_minutes$"):
            attempt.result()


def test_a_full_attempt_that_rank_0_has_not_closed_is_not_joined(join: Join) -> None:
    """As one leaves it that is killed before."""
    for attempt in [join(rank, 3, SOON) for rank in (0, 1)]:
        attempt.exception()
    killed = join(0, 3, SOON)
    killed.exception()
    for attempt in [join(rank, 3, SOON) for rank in (1, 2)]:
        with pytest.raises(LostRankError, match=r"^rank 0 did not come"):
            attempt.result()


def test_a_rank_0_that_does_not_come_again_is_named(join: Join) -> None:
    for attempt in [join(rank, 2) for rank in (0, 1)]:
        attempt.result()
    with pytest.raises(LostRankError, match=r"^rank 0 did not come"):
        join(1, 2, SOON).result()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return a port that is taken but does not answer, named in an environment of two ranks."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found: int = taken.getsockname()[1]
        for name, value in {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": found}.items():
            monkeypatch.setenv(name, str(value))
        yield found


def test_a_store_that_nobody_keeps_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(LostRankError, match=f"^rank 0 did not come .* keeps a store at 127.0.0.1:{port} "):
        meet(SOON / 60)


def test_a_listener_that_does_not_answer_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", SOON)
    monkeypatch.setenv("RANK", "1")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        monkeypatch.setenv("MASTER_PORT", str(stranger.getsockname()[1]))
        with pytest.raises(
            LostRankError, match="does not answer: rank 0 or the launcher is stopped, or it is no store"
        ):
            meet(SOON / 60)


def test_a_port_in_use_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=f"cannot use a store at 127.0.0.1:{port} .*; choose another port"):
        meet(SOON / 60)


@pytest.mark.parametrize("number", ["abc", "0", "70000", "٢"])
def test_a_port_that_is_none_is_refused(port: int, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("MASTER_PORT", number)
    with pytest.raises(UserError, match=f"MASTER_PORT={number} is impossible: expected a number from 1 to 65535"):
        meet(SOON / 60)


@pytest.mark.parametrize(
    "address", ["", "host:29500", "10.0.0.1:29500", "tcp://host", "a..b", "[fd77::1", "[fd77::1]:29500", "two hosts"]
)
def test_an_address_that_is_none_is_refused_at_once(port: int, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", address)
    with pytest.raises(UserError, match=f"^MASTER_ADDR={re.escape(address)} is impossible: expected the name or"):
        meet(LONG)


@pytest.mark.parametrize("address", ["::1", "[::1]", "localhost", "127.0.0.1"])
def test_ranks_meet_at_a_name_or_an_address_of_either_kind(
    port: int, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", address)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    with ThreadPoolExecutor() as threads:
        first = threads.submit(_join, store, 0, 2, time.monotonic() + LONG)
        assert meet(LONG / 60) is not None
        first.result()


def test_a_name_that_stays_unknown_is_told_after_the_timeout(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    told = "^rank 0 did not come .*this machine does not know the name in MASTER_ADDR: .*; if rank 0 runs, MASTER_ADDR"
    with pytest.raises(LostRankError, match=told):
        meet(SOON / 60)


@pytest.mark.parametrize(
    ("address", "on_machine", "told"),
    [
        ("nowhere.invalid", 2, "; MASTER_ADDR=nowhere.invalid is no address of this machine, rank 0's$"),
        ("127.0.0.1", 1, "; if it runs, its MASTER_ADDR .* or the network or a firewall between the two machines"),
        ("127.0.0.1", 2, "$"),
    ],
)
def test_rank_0_says_what_keeps_the_others_away(
    monkeypatch: pytest.MonkeyPatch, address: str, on_machine: int, told: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": on_machine, "MASTER_ADDR": address, "MASTER_PORT": port}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(LostRankError, match=f"^rank 1 did not come to the start within timeout_minutes{told}"):
        meet(SOON / 60)


def test_names_that_are_looked_up_without_an_answer_are_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", SOON)
    monkeypatch.setenv("RANK", "1")
    answer = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *arguments: answer.wait(LONG))
    with pytest.raises(LostRankError, match="no answer where names are looked up"):
        meet(SOON / 60)
    answer.set()


def test_ranks_without_an_address_are_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match=r"2 ranks .* without MASTER_ADDR and MASTER_PORT, .*; set them on "):
        meet(SOON / 60)


def test_ranks_without_numbers_are_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE=2 without RANK"):
        meet(SOON / 60)


def test_a_single_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert meet(SOON / 60) is None
