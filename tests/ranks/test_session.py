"""Ranks: what they sum, what they agree on. Real processes over gloo."""

import os
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from esl_dist.environment import LOCAL_RANK, LOCAL_WORLD_SIZE, Launch, launch
from esl_dist.errors import LostRankError, UserError
from esl_dist.ranks import gpus, session
from esl_dist.ranks.collectives import begin_sum, broadcast_flags, require_same_on_ranks, sum_over_ranks
from esl_dist.ranks.gpus import choose_gpu, number_locally
from tests.on_ranks import run_on_ranks


def check_agreement() -> None:
    rank = dist.get_rank()
    require_same_on_ranks("same", "configuration")
    with pytest.raises(UserError, match=r"ranks \[1\] were started with another configuration than rank 0"):
        require_same_on_ranks(f"rank {rank}", "configuration")


def check_sums() -> None:
    rank = dist.get_rank()
    own = torch.tensor([float(rank + 1)])
    assert sum_over_ranks(own).item() == 3
    assert own.item() == rank + 1, "the argument stays"
    assert broadcast_flags([rank == 0, rank == 1]) == [True, False]


def check_sums_that_are_under_way() -> None:
    """What was begun neither waits for other collectives nor mixes with them."""
    rank = dist.get_rank()
    own = torch.full((3,), rank + 1)
    begun = [begin_sum(own), begin_sum(10 * own)]
    other = torch.ones(1)
    dist.all_reduce(other)
    own.zero_()
    assert [one.wait("a sum").tolist() for one in begun] == [[3] * 3, [30] * 3]
    assert other.item() == 2


@pytest.mark.parametrize("check", [check_agreement, check_sums, check_sums_that_are_under_way])
def test_ranks_sum_and_agree(check: Callable[[], None]) -> None:
    run_on_ranks(check)


def test_one_process_needs_no_ranks() -> None:
    require_same_on_ranks("anything", "configuration")
    assert begin_sum(torch.ones(2)).wait("a sum").tolist() == [1, 1]
    assert broadcast_flags([True, False]) == [True, False]


def numbered_locally(boots: list[str]) -> tuple[str, str]:
    """Return what a rank is told that its launcher has not numbered, on machines of these boots."""
    for name in (*LOCAL_RANK, *LOCAL_WORLD_SIZE):
        os.environ.pop(name, None)
    gpus.BOOT = SimpleNamespace(exists=lambda: True, read_text=lambda: boots[dist.get_rank()])
    store = dist.PrefixStore("numbers", dist.distributed_c10d._get_default_store())
    number_locally(store, launch())
    return os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]


@pytest.mark.parametrize(
    ("boots", "numbers"),
    [
        (["a", "a"], [("0", "2"), ("1", "2")]),
        (["a", "b"], [("0", "1"), ("0", "1")]),
        (["a", "b", "a"], [("0", "2"), ("0", "1"), ("1", "2")]),
    ],
)
def test_ranks_that_a_launcher_does_not_number_on_their_machine_number_themselves(
    boots: list[str], numbers: list[tuple[str, str]]
) -> None:
    assert run_on_ranks(numbered_locally, boots, ranks=len(boots)) == numbers


def test_a_rank_that_is_not_numbered_does_not_wait_for_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LOCAL_RANK, *LOCAL_WORLD_SIZE):
        monkeypatch.delenv(name, raising=False)
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    monkeypatch.setenv("LOCAL_RANK", "0")
    number_locally(store, Launch(0, 2, 1))
    monkeypatch.delenv("LOCAL_RANK")
    number_locally(store, Launch(1, 2, 1))
    assert os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(3, 1, 0), (0, 8, 0), (5, 8, 5), (5, 4, 1)])
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, visible: int, index: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"gpu {number}"))
    store = dist.HashStore()
    store.set("gpu/1", "another machine's")
    assert choose_gpu(store, Launch(0, 2, 1)) == torch.device("cuda", index)
    assert chosen == [index]
    assert os.environ["LOCAL_RANK"] == str(index)
    # Containers of one machine have host names of their own.
    monkeypatch.setattr(gpus.socket, "gethostname", lambda: "a container")
    store.set("gpu/1", f"gpu {index}")
    with pytest.raises(UserError, match=r"ranks would share a GPU: \[0, 1\]; start at most as many processes"):
        choose_gpu(store, Launch(0, 2, 1))


def test_a_launcher_is_watched_also_where_the_ranks_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[int] = []

    def lost(timeout_minutes: float) -> None:
        raise LostRankError("rank 0 did not come")

    monkeypatch.setattr(session, "meet", lost)
    monkeypatch.setattr(session, "watch_launcher", watched.append)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRankError), session.joined_ranks(1):
        pass
    assert watched == [1]
