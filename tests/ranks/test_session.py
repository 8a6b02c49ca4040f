"""Ranks: what they sum, what they agree on. Real processes over gloo."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn

from esl_dist.errors import UserError
from esl_dist.ranks import collectives
from esl_dist.ranks.collectives import broadcast_flags, require_same_on_ranks, sum_gradients, sum_over_ranks
from tests.on_ranks import run_on_ranks


def check_gradients() -> None:
    rank = dist.get_rank()
    sizes_and_types = [
        (3, torch.float32),
        (40, torch.float32),
        (5, torch.float64),
        (7, torch.float32),
        (0, torch.float32),
    ]
    parameters = [nn.Parameter(torch.zeros(size, dtype=kind)) for size, kind in sizes_and_types]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.arange(parameter.numel(), dtype=parameter.dtype) * (rank + 1) + number
    without = nn.Parameter(torch.zeros(2))
    sent: list[int] = []
    plain = dist.all_reduce

    def counted(tensor: torch.Tensor) -> None:
        sent.append(tensor.numel() * tensor.element_size())
        plain(tensor)

    collectives.BUCKET_BYTES = 64
    dist.all_reduce = counted
    sum_gradients([*parameters[:2], without, *parameters[2:]])
    dist.all_reduce = plain
    for number, parameter in enumerate(parameters):
        expected = torch.arange(parameter.numel(), dtype=parameter.dtype) * 3 + 2 * number
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected)
    assert without.grad is None
    assert sum(sent) == 3 * 4 + 40 * 4 + 5 * 8 + 7 * 4, "each gradient crosses the network once"
    assert len(sent) > 1, "buckets are bounded"


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


@pytest.mark.parametrize("check", [check_gradients, check_agreement, check_sums])
def test_ranks_sum_and_agree(check: Callable[[], None]) -> None:
    run_on_ranks(check)


def test_one_process_needs_no_ranks() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    sum_gradients([parameter])
    require_same_on_ranks("anything", "configuration")
    assert torch.equal(parameter.grad, torch.ones(2))
    assert broadcast_flags([True, False]) == [True, False]
