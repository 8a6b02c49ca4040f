"""Pseudo-labels: what is predicted, the threshold of each class, and which pixels it keeps."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esl_dist.adaptation.entropy import HIGHEST_LEVEL, count_levels, empty_histograms
from esl_dist.adaptation.pseudo_labels import TRUST, keep_trusted, kept_pixels, label_and_score, thresholds
from tests.adaptation import formulas

CLASSES = 4
BOUND = {"entropy": 0.1, "confidence": 0.9}
"""The paper's: the least entropy threshold, the highest confidence threshold."""

near_bounds = st.sampled_from([0, 1, 6552, 6553, 6554, 13106, 13107, 13108, 58981, 58982, 58983, 65534, 65535])
levels = st.one_of(st.integers(0, HIGHEST_LEVEL), near_bounds)
pixels = st.lists(st.tuples(st.integers(0, CLASSES - 2), levels), min_size=1, max_size=50)
"""The last class is never predicted."""

trusts = pytest.mark.parametrize("name", ["entropy", "confidence"])


class Drawn(NamedTuple):
    """Labels and levels of pixels in a row."""

    labels: torch.Tensor
    levels: torch.Tensor

    def histograms(self) -> torch.Tensor:
        histograms = empty_histograms(CLASSES, torch.device("cpu"))
        count_levels(histograms, self.labels, self.levels)
        return histograms


def tensors(drawn: list[tuple[int, int]]) -> Drawn:
    return Drawn(
        torch.tensor([label for label, _ in drawn]), torch.tensor([level for _, level in drawn], dtype=torch.uint16)
    )


def plainly_kept(drawn: Drawn, name: str, thousandths: int) -> NDArray[np.bool_]:
    """Sort, take the pixel at round(n / 2), keep it and those no worse; or those within the bound if that is milder.

    The bound is thousandths / 1000, in whole numbers, so that nothing is rounded.
    """
    labels, drawn_levels = drawn.labels.numpy(), drawn.levels.numpy().astype(np.int64)
    kept = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        own = labels == label
        if not own.any():
            continue
        ordered = np.sort(drawn_levels[own])
        median = ordered[round(len(ordered) / 2)]
        scaled, bound = 1000 * drawn_levels, HIGHEST_LEVEL * thousandths
        if name == "entropy":
            good = (drawn_levels <= median) | (scaled <= bound)
        else:
            good = (drawn_levels >= median) | (scaled >= bound)
        kept |= own & good
    return kept


@trusts
@given(drawn=pixels, thousandths=st.one_of(st.integers(0, 1000), st.sampled_from([0, 100, 200, 900, 1000])))
@settings(deadline=None, max_examples=200)
def test_kept_are_the_pixels_no_worse_than_the_median_or_within_the_bound(
    name: str, drawn: list[tuple[int, int]], thousandths: int
) -> None:
    row = tensors(drawn)
    limits = thresholds(row.histograms(), TRUST[name], thousandths / 1000)
    result = keep_trusted(row.labels, row.levels, limits, TRUST[name])
    assert result.dtype == torch.uint8
    kept = plainly_kept(row, name, thousandths)
    assert np.array_equal(result.numpy(), np.where(kept, row.labels.numpy(), 255))
    counts = np.bincount(row.labels.numpy()[kept], minlength=CLASSES)
    assert kept_pixels(row.histograms(), limits, TRUST[name]) == counts.tolist()


@trusts
@given(drawn=pixels)
@settings(deadline=None, max_examples=50)
def test_no_threshold_is_stricter_than_the_bound(name: str, drawn: list[tuple[int, int]]) -> None:
    limits = thresholds(tensors(drawn).histograms(), TRUST[name], BOUND[name])
    for limit in limits:
        assert limit.score >= 0.1 if name == "entropy" else limit.score <= 0.9
        assert abs(limit.score - limit.level / HIGHEST_LEVEL) < 1 / HIGHEST_LEVEL
    assert limits[-1].score == BOUND[name], "the class that is never predicted"


@pytest.mark.parametrize(
    ("name", "median", "expected"),
    [
        ("entropy", 6553, (0.1, 6553)),
        ("entropy", 6554, (6554 / 65535, 6554)),
        ("entropy", 0, (0.1, 6553)),
        ("entropy", 65535, (1.0, 65535)),
        ("confidence", 58981, (58981 / 65535, 58981)),
        ("confidence", 58982, (0.9, 58982)),
        ("confidence", 65535, (0.9, 58982)),
        ("confidence", 0, (0.0, 0)),
    ],
)
def test_the_bound_holds_from_its_own_level_on(name: str, median: int, expected: tuple[float, int]) -> None:
    limit = thresholds(tensors([(1, median)]).histograms(), TRUST[name], BOUND[name])[1]
    assert (limit.score, limit.level) == expected


@trusts
def test_a_bound_that_is_a_level_is_that_level(name: str) -> None:
    nobody = torch.zeros(1, HIGHEST_LEVEL + 1, dtype=torch.int64)
    for level in [*range(0, HIGHEST_LEVEL, 97), HIGHEST_LEVEL]:
        assert thresholds(nobody, TRUST[name], level / HIGHEST_LEVEL)[0].level == level


@trusts
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_pictures_keep_their_shape(name: str, kind: torch.dtype) -> None:
    labels = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    picture_levels = torch.tensor([[[0, 40000, 65535], [0, 0, 65535]]], dtype=torch.uint16)
    limits = thresholds(Drawn(labels, picture_levels).histograms(), TRUST[name], BOUND[name])
    kept = keep_trusted(labels.to(kind), picture_levels, limits, TRUST[name])
    # Of two pixels the median is the higher one: entropy keeps both, confidence the surer ones.
    surer = [[[255, 1, 2], [255, 255, 0]]]
    assert kept.tolist() == (labels.tolist() if name == "entropy" else surer)


@trusts
def test_probabilities_are_upsampled_and_not_logits(name: str) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 6, (2, CLASSES, 4, 5))
    labels, picture_levels = label_and_score(torch.from_numpy(logits), (13, 18), TRUST[name])
    probabilities = formulas.bilinear(formulas.softmax(logits), 13, 18)
    score = formulas.entropy(probabilities) if name == "entropy" else probabilities.max(1)
    assert (labels.dtype, picture_levels.dtype) == (torch.uint8, torch.uint16)
    assert np.array_equal(labels.numpy(), probabilities.argmax(1))
    assert np.abs(picture_levels.numpy() - score * HIGHEST_LEVEL).max() < 0.501
    # The order matters: the other one gives other labels for these logits.
    assert not np.array_equal(labels.numpy(), formulas.bilinear(logits, 13, 18).argmax(1))


@trusts
def test_certain_predictions_have_the_outermost_level(name: str) -> None:
    logits = torch.full((1, CLASSES, 2, 2), -1000.0)
    logits[:, 2] = 1000.0
    labels, picture_levels = label_and_score(logits, (3, 3), TRUST[name])
    assert set(labels.flatten().tolist()) == {2}
    assert set(picture_levels.flatten().tolist()) == {0 if name == "entropy" else HIGHEST_LEVEL}
