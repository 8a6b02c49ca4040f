"""Histograms of levels count every pixel, add up, and give the order statistic that sorting would give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.adaptation.entropy import (
    HIGHEST_LEVEL,
    count_levels,
    count_pairs,
    empty_histograms,
    median_levels,
    quantise,
)

CLASSES = 3
levels = st.one_of(st.integers(0, HIGHEST_LEVEL), st.sampled_from([0, 1, 7, 6553, HIGHEST_LEVEL - 1, HIGHEST_LEVEL]))
pixels = st.lists(st.tuples(st.integers(0, CLASSES - 1), levels), max_size=60)
"""Predicted class and level of each pixel; few or none of some classes."""


def histograms_of(drawn: list[tuple[int, int]]) -> torch.Tensor:
    labels = torch.tensor([label for label, _ in drawn], dtype=torch.uint8)
    return counted(labels, torch.tensor([level for _, level in drawn], dtype=torch.uint16))


def counted(labels: torch.Tensor, picture_levels: torch.Tensor) -> torch.Tensor:
    histograms = empty_histograms(CLASSES, torch.device("cpu"))
    count_levels(histograms, labels, picture_levels)
    return histograms


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_scores_become_the_nearest_level(kind: torch.dtype) -> None:
    every = torch.arange(HIGHEST_LEVEL + 1)
    assert torch.equal(quantise(every.to(kind) / HIGHEST_LEVEL), every.to(torch.uint16))
    scores = torch.rand(2, 3, 50, dtype=kind, generator=torch.Generator().manual_seed(0))
    assert quantise(scores).shape == scores.shape
    assert (quantise(scores).to(kind) / HIGHEST_LEVEL - scores).abs().max() <= 0.5001 / HIGHEST_LEVEL


def test_scores_out_of_range_become_the_outermost_levels() -> None:
    assert quantise(torch.tensor([-0.001, 1.001])).tolist() == [0, HIGHEST_LEVEL]


@given(pixels)
@settings(deadline=None)
def test_histograms_count_every_pixel(drawn: list[tuple[int, int]]) -> None:
    histograms = histograms_of(drawn)
    assert (histograms.shape, histograms.dtype) == ((CLASSES, HIGHEST_LEVEL + 1), torch.int64)
    expected: dict[tuple[int, int], int] = {}
    for pixel in drawn:
        expected[pixel] = expected.get(pixel, 0) + 1
    found = {tuple(place): int(histograms[tuple(place)]) for place in histograms.nonzero().tolist()}
    assert found == expected


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_histograms_take_pictures_with_labels_of_any_integers(kind: torch.dtype) -> None:
    labels = torch.tensor([[[0, 1], [2, 2]]], dtype=kind)
    histograms = counted(labels, torch.tensor([[[5, 6], [65535, 0]]], dtype=torch.uint16))
    assert histograms.nonzero().tolist() == [[0, 5], [1, 6], [2, 0], [2, 65535]]


@given(pixels, st.lists(st.integers(0, 3), min_size=60, max_size=60))
@settings(deadline=None, max_examples=50)
def test_histograms_of_parts_add_up(drawn: list[tuple[int, int]], parts: list[int]) -> None:
    shares = [
        histograms_of([pixel for pixel, part in zip(drawn, parts, strict=False) if part == number])
        for number in range(4)
    ]
    assert torch.equal(sum(shares), histograms_of(drawn))


def test_what_is_counted_is_added_to_what_was() -> None:
    """One more at a level of each of two classes; and what comes again counts again."""
    histograms = histograms_of([(0, 5), (2, 65535)])
    count_levels(histograms, torch.tensor([0, 1, 2]), torch.tensor([5, 5, 65535]))
    assert [(place, int(histograms[tuple(place)])) for place in histograms.nonzero().tolist()] == [
        ([0, 5], 2),
        ([1, 5], 1),
        ([2, 65535], 2),
    ]


@given(pixels)
@settings(deadline=None, max_examples=300)
def test_the_median_is_the_sorted_level_at_half_rounded_to_even(drawn: list[tuple[int, int]]) -> None:
    for label, median in enumerate(median_levels(histograms_of(drawn))):
        ordered = np.sort([level for other, level in drawn if other == label])
        assert median == (ordered[round(len(ordered) / 2)] if len(ordered) else None)


@pytest.mark.parametrize("count", range(1, 14))
def test_the_index_of_the_median_is_the_published_one(count: int) -> None:
    published = {1: 0, 2: 1, 3: 2, 4: 2, 5: 2, 6: 3, 7: 4, 8: 4, 9: 4, 10: 5, 11: 6, 12: 6, 13: 6}
    histograms = histograms_of([(1, 100 * number) for number in range(count)])
    assert median_levels(histograms) == [None, 100 * published[count], None]


def test_counts_beyond_32_bits_are_exact() -> None:
    histograms = torch.zeros(1, HIGHEST_LEVEL + 1, dtype=torch.int64)
    histograms[0, 10], histograms[0, 20] = 3 * 2**33 + 1, 3 * 2**33
    # n is odd: n / 2 = 3 · 2^33 + 1/2, to even 3 · 2^33, the last of the lower ones.
    assert median_levels(histograms) == [10]
    histograms[0, 20] += 1
    assert median_levels(histograms) == [20]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_counting_pairs_leaves_the_pairs_as_they_were(kind: torch.dtype) -> None:
    counts, rows, columns = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1, 0, 1]), torch.tensor([2, 2, 2])
    rows, columns = rows.to(kind), columns.to(kind)
    count_pairs(counts, rows, columns)
    assert (rows.tolist(), columns.tolist()) == ([1, 0, 1], [2, 2, 2])
    assert counts.tolist() == [[0, 0, 1], [0, 0, 2]]
