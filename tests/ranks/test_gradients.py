"""Gradients of a step: summed over ranks in fixed buckets while passes run, and the same bits whenever that is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esl_dist.ranks import gradients
from esl_dist.ranks.gradients import BUCKET_BYTES, StepGradients, in_buckets
from tests.on_ranks import run_on_ranks

SMALL_BUCKET = 64
RULE = "a method makes the same passes in every step, on every rank: in Method.passes, .* a weight of 0"


def build() -> nn.ModuleDict:
    """Return two networks of some layers, one of channels last."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)).to(
        memory_format=torch.channels_last
    )
    return nn.ModuleDict({"first": first, "second": nn.Linear(2, 5)})


def in_order(networks: nn.ModuleDict) -> list[list[nn.Parameter]]:
    return [list(reversed(list(network.parameters()))) for network in networks.values()]


def own_loss(networks: nn.ModuleDict, seed: int) -> Tensor:
    """Return a loss of the first network on pictures that are another on each rank."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(10 * seed + rank))
    loss: Tensor = networks["first"](pictures).square().mean()
    return loss


def passes(networks: nn.ModuleDict, number: int = 2) -> None:
    """Make passes through the first network, then one through the second."""
    for seed in range(number):
        own_loss(networks, seed).backward()
    networks["second"](torch.ones(3, 2)).square().sum().backward()


def take(networks: nn.ModuleDict, summed: StepGradients, number: int = 2) -> list[Tensor | None]:
    """Return the summed gradients of a step."""
    passes(networks, number)
    summed.finish_sums()
    found = [None if one.grad is None else one.grad.clone() for one in networks.parameters()]
    summed.forget()
    return found


@contextmanager
def small_buckets() -> Iterator[list[int]]:
    """Bound buckets to a few numbers, and note the bytes of each sum when it begins."""
    sent: list[int] = []
    plain = dist.all_reduce

    def noted(tensor: Tensor, **options: object) -> object:
        sent.append(tensor.numel() * tensor.element_size())
        return plain(tensor, **options)

    gradients.BUCKET_BYTES, dist.all_reduce = SMALL_BUCKET, noted
    try:
        yield sent
    finally:
        gradients.BUCKET_BYTES, dist.all_reduce = BUCKET_BYTES, plain


def check_sums() -> None:
    """The sum is that of the ranks' own gradients; each crosses the network once, in buckets, as early as it can."""
    networks, alone = build(), build()
    with small_buckets() as sent:
        summed = StepGradients(in_order(networks))
        first = take(networks, summed)
        # The passes are learned in the first step, by one sum more.
        layout = sent[:-1]
        assert sum(layout) == sum(4 * one.numel() for one in networks.parameters())
        assert len(layout) > 4, "buckets are bounded"
        sent.clear()
        own_loss(networks, 0).backward()
        assert sent == [], "another pass will add to all of them"
        own_loss(networks, 1).backward()
        assert len(sent) == len(layout) - 1, "all but those of the second network"
        networks["second"](torch.ones(3, 2)).square().sum().backward()
        assert sent == layout, "nothing is left to the update, and the order is the layout's"
        summed.finish_sums()
        assert sent == layout
    passes(alone)
    for own, one, before in zip(alone.parameters(), networks.parameters(), first, strict=True):
        assert own.grad is not None
        assert one.grad is not None
        assert before is not None
        total = own.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(one.grad, total, rtol=1e-6, atol=1e-7)
        assert one.grad.stride() == one.stride(), "in the layout of the weights"
        assert torch.equal(one.grad, before), "whether it was sent early does not show"
    summed.forget()
    assert not any(one.grad.any() for one in networks.parameters() if one.grad is not None)


def check_a_start() -> None:
    """A continued training learns the passes anew, and gets the bits of one that knows them."""
    networks = build()
    with small_buckets():
        summed = StepGradients(in_order(networks))
        before = [take(networks, summed) for _ in range(2)]
        continued = build()
        after = take(continued, StepGradients(in_order(continued)))
    for one, other in zip(before[1], after, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def check_fewer_passes() -> None:
    """A pass that is missing later, be it on one rank alone, leaves all ranks with the sum of what is there."""
    networks, alone = build(), build()
    with small_buckets():
        summed = StepGradients(in_order(networks))
        take(networks, summed)
        own_loss(networks, 0).backward()
        if dist.get_rank() == 1:
            networks["second"](torch.ones(3, 2)).square().sum().backward()
        summed.finish_sums()
    own_loss(alone, 0).backward()
    for own in alone["first"].parameters():
        dist.all_reduce(own.grad)
    alone["second"](torch.ones(3, 2)).square().sum().backward()
    for own, one in zip(alone.parameters(), networks.parameters(), strict=True):
        torch.testing.assert_close(one.grad, own.grad, rtol=1e-6, atol=1e-7)


def check_parameters_that_no_pass_reaches() -> None:
    """They have no gradient, in no step, so optimisers leave them alone; a pass that reaches them later is refused."""
    networks = build()
    summed = StepGradients(in_order(networks))
    for _ in range(2):
        own_loss(networks, 0).backward()
        summed.finish_sums()
        assert [one.grad for one in networks["second"].parameters()] == [None, None]
        assert all(one.grad is not None for one in networks["first"].parameters())
        summed.forget()
    with pytest.raises(ValueError, match="more passes reach a parameter than in the first step"):
        networks["second"](torch.ones(3, 2)).square().sum().backward()


def check_more_passes() -> None:
    """A pass more, after a sum has begun, is an error and no wrong sum: on a single rank, too."""
    networks = build()
    summed = StepGradients(in_order(networks))
    take(networks, summed)
    with pytest.raises(ValueError, match=f"more passes reach a parameter than in the first step.*{RULE}"):
        passes(networks, 3)


def check_other_passes_on_a_rank() -> None:
    networks = build()
    summed = StepGradients(in_order(networks))
    passes(networks, 1 + dist.get_rank())
    with pytest.raises(ValueError, match=f"reach other parameters, or another number of times, than .*{RULE}"):
        summed.finish_sums()


@pytest.mark.parametrize(
    "check",
    [
        check_sums,
        check_a_start,
        check_fewer_passes,
        check_parameters_that_no_pass_reaches,
        check_more_passes,
        check_other_passes_on_a_rank,
    ],
)
def test_two_ranks_sum_a_steps_gradients(check: Callable[[], None]) -> None:
    run_on_ranks(check)


def test_a_single_rank_keeps_its_gradients_and_the_rule() -> None:
    networks, alone = build(), build()
    passes(alone)
    summed = StepGradients(in_order(networks))
    for _ in range(2):
        for own, found in zip(alone.parameters(), take(networks, summed), strict=True):
            assert own.grad is not None
            assert found is not None
            assert torch.equal(own.grad, found)
    check_more_passes()
    check_parameters_that_no_pass_reaches()


def test_a_gradient_that_someone_replaced_is_refused() -> None:
    networks = build()
    StepGradients(in_order(networks))
    networks.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="a gradient was replaced: leave those of trained networks to `minimise`"):
        passes(networks)


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([torch.float32, torch.float64]))))
def test_buckets_keep_the_order_are_bounded_and_of_one_type(sizes: list[tuple[int, torch.dtype]]) -> None:
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    gradients.BUCKET_BYTES = SMALL_BUCKET
    try:
        buckets = in_buckets(parameters)
    finally:
        gradients.BUCKET_BYTES = BUCKET_BYTES
    assert [id(one) for bucket in buckets for one in bucket] == [id(one) for one in parameters]
    for bucket in buckets:
        assert len({one.dtype for one in bucket}) == 1
        assert len(bucket) == 1 or sum(one.numel() * one.element_size() for one in bucket) <= SMALL_BUCKET
    for one, other in pairwise(buckets):
        fits = sum(p.numel() * p.element_size() for p in [*one, other[0]]) <= SMALL_BUCKET
        assert not fits or one[0].dtype != other[0].dtype, "no bucket ends before it is full"
