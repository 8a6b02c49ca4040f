"""Resizing is torch's, to the bit; its gradient is the same function's, summed in an order that does not change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from esl_dist.models.resizing import upsample

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MAPS = (2, 3)
"""Batch and channels."""


def torchs(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=True)


def gradients(scores: Tensor, size: tuple[int, int], of_result: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient here and torch's."""
    return tuple(torch.autograd.grad(resize(scores, size), scores, of_result)[0] for resize in (upsample, torchs))


def test_corners_stay_corners() -> None:
    scores = torch.tensor([[[[0.0, 4.0], [10.0, 14.0]]]])
    expected = torch.tensor([[[[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0], [10.0, 11.0, 12.0, 13.0, 14.0]]]])
    assert torch.equal(upsample(scores, (3, 5)), expected)


@given(before=SIDES, after=SIDES, kind=st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=50)
def test_the_result_has_torchs_bits_and_the_gradient_is_torchs_to_rounding(
    before: tuple[int, int], after: tuple[int, int], kind: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(*MAPS, *before, generator=random, dtype=kind).requires_grad_()
    assert torch.equal(upsample(scores, after), torchs(scores, after))
    own, expected = gradients(scores, after, torch.randn(*MAPS, *after, generator=random, dtype=kind))
    assert own.dtype == kind
    tolerance = 1e-12 if kind == torch.float64 else 1e-5
    torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("before", "after"), [((90, 160), (720, 1280)), ((65, 129), (512, 1024))])
def test_the_gradient_is_torchs_at_the_published_sizes(before: tuple[int, int], after: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.zeros(1, 1, *before, dtype=torch.float64, requires_grad=True)
    own, expected = gradients(scores, after, torch.randn(1, 1, *after, generator=random, dtype=torch.float64))
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    scores = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda scores: upsample(scores, (7, 5)), scores)


def test_channels_that_lie_side_by_side_make_no_difference() -> None:
    scores = torch.randn(*MAPS, 4, 5, requires_grad=True)
    of_result = torch.randn(*MAPS, 9, 8)
    plain, side_by_side = (
        torch.autograd.grad(upsample(scores, (9, 8)), scores, of_result.contiguous(memory_format=one))[0]
        for one in (torch.contiguous_format, torch.channels_last)
    )
    torch.testing.assert_close(side_by_side, plain)


def test_a_call_on_shapes_without_values_leaves_the_calls_after_it_as_they_were() -> None:
    with FakeTensorMode():
        fake = torch.empty(*MAPS, 4, 5, requires_grad=True)
        upsample(fake, (9, 8)).sum().backward()
        assert fake.grad.shape == fake.shape
    own, expected = gradients(torch.randn(*MAPS, 4, 5, requires_grad=True), (9, 8), torch.randn(*MAPS, 9, 8))
    torch.testing.assert_close(own, expected)


def test_it_compiles_to_one_graph_forwards_and_backwards() -> None:
    scores, of_result = torch.randn(*MAPS, 4, 5, requires_grad=True), torch.randn(*MAPS, 9, 8)
    compiled = torch.compile(upsample, fullgraph=True, backend="aot_eager")
    own, expected = (
        torch.autograd.grad(resize(scores, (9, 8)), scores, of_result)[0] for resize in (compiled, upsample)
    )
    assert torch.equal(own, expected)
