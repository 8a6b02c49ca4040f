"""What tests build on: a function on ranks returns what each of them returns, and fails with the ranks' own words."""

import os

import pytest
import torch
import torch.distributed as dist

from tests.on_ranks import PROJECT, _environment, run_on_ranks


def sum_of_ranks(first: int) -> tuple[int, int]:
    total = torch.tensor(first + dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), int(total)


def fail_on_rank_1() -> None:
    assert dist.get_rank() == 0, "rank 1 does not like it"
    dist.barrier()


def test_each_rank_returns_its_result() -> None:
    assert run_on_ranks(sum_of_ranks, 10, ranks=3) == [(0, 33), (1, 33), (2, 33)]


def test_the_traceback_of_a_rank_is_shown() -> None:
    with pytest.raises(AssertionError, match=r"in fail_on_rank_1(?s:.*)AssertionError: rank 1 does not like it"):
        run_on_ranks(fail_on_rank_1)


@pytest.mark.parametrize("carried", ["/carried/packages", f"{PROJECT}{os.pathsep}/carried/packages"])
def test_ranks_find_packages_that_this_process_finds_and_the_project_before_them(
    monkeypatch: pytest.MonkeyPatch, carried: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", carried)
    assert _environment({})["PYTHONPATH"].split(os.pathsep) == [str(PROJECT), "/carried/packages"]
