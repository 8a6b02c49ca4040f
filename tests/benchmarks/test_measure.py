"""How two sides are measured: in turn, by medians, and refused where their results differ."""

import math

import pytest
import torch

from benchmarks.measure import UnequalError, compared, medians_in_turn, peak_bytes, require_close, require_same


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    of_ours, of_plain = iter([100.0, 3.0, 1.0, 2.0]), iter([100.0, 30.0, 20.0, 90.0])

    def ours() -> float:
        order.append("ours")
        return next(of_ours)

    def plain() -> float:
        order.append("plain")
        return next(of_plain)

    assert medians_in_turn("a row", ours, plain, 3) == (2.0, 30.0)
    assert order == ["ours", "plain", "plain", "ours", "ours", "plain", "plain", "ours"]


@pytest.mark.parametrize(("unit", "ratio"), [("s", 0.5), ("MB", 0.5), ("pictures/s", 2.0)])
def test_a_ratio_above_one_says_that_ours_is_better(unit: str, ratio: float) -> None:
    assert compared("a row", (2.0, 1.0), unit, None).ratio == ratio


def test_tensors_may_differ_by_the_bound_of_the_largest_value_and_no_more() -> None:
    plain = {"one": torch.tensor([0.0, 100.0]), "none": torch.zeros(2)}
    near = {**plain, "one": torch.tensor([0.9, 100.0])}
    require_close("a sum", near, plain, 0.01)
    with pytest.raises(UnequalError, match="a sum: one differs by"):
        require_close("a sum", near, plain, 0.001)
    with pytest.raises(UnequalError, match="none differs"):
        require_close("a sum", {**plain, "none": torch.full((2,), 1e-30)}, plain, 0.01)


@pytest.mark.parametrize(
    "other",
    [{}, {"two": torch.zeros(1)}, {"one": torch.zeros(2)}, {"one": torch.tensor([math.nan])}],
    ids=["missing", "another", "shape", "not a number"],
)
def test_other_names_shapes_and_no_numbers_are_never_close(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UnequalError):
        require_close("a sum", other, {"one": torch.zeros(1)}, 1e9)


def test_what_is_not_the_same_is_refused() -> None:
    require_same("bytes", b"1", b"1")
    with pytest.raises(UnequalError, match="bytes"):
        require_same("bytes", b"1", b"2")


def test_the_peak_counts_what_was_freed_before_the_end() -> None:
    def work() -> None:
        torch.ones(8_000_000)

    for _ in range(2):
        assert 30e6 < peak_bytes(work) < 60e6
