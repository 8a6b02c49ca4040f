"""How far a teacher's labels are trusted, against plain computations."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from esl_dist.adaptation.trust import (
    LAST_ENTROPY_LEVEL,
    Entropies,
    Trusted,
    confident,
    counted,
    entropy_levels,
    labels_at,
    limits,
    offline_first,
    weights,
    within_margins,
)
from tests.adaptation import formulas

CLASSES, SHAPE = 5, (2, 12, 16)


def scores(seed: int) -> np.ndarray:
    return 3 * np.random.RandomState(seed).standard_normal((SHAPE[0], CLASSES, *SHAPE[1:]))


def predicted(seed: int) -> Tensor:
    return F.log_softmax(torch.from_numpy(scores(seed)), 1)


def test_a_teacher_is_confident_where_the_highest_probability_is_that_asked_for() -> None:
    probabilities = formulas.softmax(scores(1))
    found = confident(predicted(1), torch.from_numpy(probabilities.argmax(1)), 0.8)
    np.testing.assert_array_equal(found, probabilities.max(1) >= 0.8)
    assert 0.2 < float(found.double().mean()) < 0.8


def test_entropies_are_those_of_the_paper_in_1024_levels() -> None:
    expected = np.round(1023 * formulas.entropy(formulas.softmax(scores(1))))
    levels = entropy_levels(predicted(1))
    np.testing.assert_array_equal(levels, expected)
    assert levels.dtype == torch.int32
    sure, unsure = torch.zeros(1, 3, 1, 1), torch.tensor([0.0, -200.0, -200.0]).view(1, 3, 1, 1)
    assert entropy_levels(F.log_softmax(sure, 1)).item() == LAST_ENTROPY_LEVEL
    assert entropy_levels(F.log_softmax(unsure, 1)).item() == 0


def test_a_pixel_without_an_entropy_is_the_least_certain_and_can_be_counted() -> None:
    """A training that diverges gets as far as the check of its losses, which says so."""
    one = predicted(1)
    one[0, :, 3, 4] = float("nan")
    levels = entropy_levels(one)
    assert levels[0, 3, 4] == LAST_ENTROPY_LEVEL
    seen = torch.ones(SHAPE, dtype=torch.bool)
    assert int(counted(one.argmax(1), levels, seen, CLASSES).sum()) == seen.numel()


def drawn_pixels(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, levels and which pixels are seen; class 3 is never predicted."""
    random = np.random.RandomState(seed)
    labels = random.choice([0, 1, 2, 4], SHAPE)
    levels = random.randint(0, 400 + 100 * labels).astype(np.int32)
    return torch.from_numpy(labels), torch.from_numpy(levels), torch.from_numpy(random.rand(*SHAPE) < 0.7)


def test_levels_are_counted_by_class_where_pixels_are_seen() -> None:
    labels, levels, seen = drawn_pixels(1)
    expected = np.zeros((CLASSES, 1024), np.int64)
    for label, level in zip(labels[seen].tolist(), levels[seen].tolist(), strict=True):
        expected[label, level] += 1
    found = counted(labels, levels, seen, CLASSES)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == torch.int64
    halves = sum(counted(labels[i : i + 1], levels[i : i + 1], seen[i : i + 1], CLASSES) for i in range(2))
    assert torch.equal(found, halves), "counts of parts add up"


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.35, 1.0])
def test_the_limit_of_a_class_is_the_median_of_its_levels_but_no_stricter_than_the_floor(floor: float) -> None:
    labels, levels, seen = drawn_pixels(2)
    found = limits(counted(labels, levels, seen, CLASSES), floor).tolist()
    for one in range(CLASSES):
        own = sorted(levels[seen & (labels == one)].tolist())
        median = own[len(own) // 2] if own else 0
        assert found[one] == max(median, int(floor * LAST_ENTROPY_LEVEL + 1e-6)), one


def test_a_class_that_was_never_predicted_has_the_floor() -> None:
    assert limits(torch.zeros(2, 1024, dtype=torch.float64), 0.25).tolist() == [255, 255]


def test_counts_fade_from_step_to_step() -> None:
    entropies, random = Entropies(2), np.random.RandomState(0)
    counts = [random.randint(0, 100, (2, 1024)) for _ in range(4)]
    for one in counts:
        entropies.add(torch.from_numpy(one), memory=0.5)
    expected = sum(0.5 ** (3 - step) * one for step, one in enumerate(counts))
    np.testing.assert_array_equal(entropies.histograms, expected)
    faded, whole = Entropies(2), Entropies(2)
    for step in range(200):
        faded.add(torch.from_numpy(counts[0] if step == 0 else 0 * counts[0]), memory=0.9)
    whole.add(torch.from_numpy(counts[0]), memory=0.9)
    assert torch.equal(limits(faded.histograms, 0.0), limits(whole.histograms, 0.0)), "a median bears a scale"


def test_a_class_that_is_predicted_no_more_keeps_its_median_until_it_has_none() -> None:
    counts = torch.zeros(1, 1024, dtype=torch.int64)
    counts[0, :600], counts[0, 1000] = 1, 500
    entropies, none = Entropies(1), torch.zeros_like(counts)
    entropies.add(counts, 0.9)
    found = set()
    for _ in range(8000):
        entropies.add(none, 0.9)
        found.add(int(limits(entropies.histograms, 0.01)))
    # Of two that are all but equal, rounding may choose the other.
    assert found in ({549, 10}, {550, 10}, {549, 550, 10})
    assert int(entropies.histograms.count_nonzero()) == 0


def test_a_median_weighs_recent_steps_more() -> None:
    entropies = Entropies(1)
    for level in (900, 900, 900, 100):
        step = torch.zeros(1, 1024, dtype=torch.int64)
        step[0, level] = 10
        entropies.add(step, memory=0.4)
    assert limits(entropies.histograms, 0.0).tolist() == [100]


def test_a_pixel_weighs_its_pictures_share_of_trusted_pixels_or_one_and_outside_what_is_seen_nothing() -> None:
    random = np.random.RandomState(0)
    trusted, seen = random.rand(*SHAPE) < 0.6, random.rand(*SHAPE) < 0.8
    found = weights(torch.from_numpy(trusted), torch.from_numpy(seen), by_pixel=False)
    for picture in range(SHAPE[0]):
        share = trusted[picture].sum() / (SHAPE[1] * SHAPE[2])
        np.testing.assert_allclose(found[picture], np.where(seen[picture], share, 0.0), rtol=1e-6)
    by_pixel = weights(torch.from_numpy(trusted), torch.from_numpy(seen), by_pixel=True)
    np.testing.assert_array_equal(by_pixel, trusted & seen)


def batch(windows: list[list[float]], mirrored: list[bool], height: int, width: int) -> Any:
    return {
        "images": torch.zeros(len(windows), 3, height, width),
        "windows": torch.tensor(windows, dtype=torch.float64),
        "mirrored": torch.tensor(mirrored),
    }


def test_the_margins_of_a_whole_picture_are_its_own() -> None:
    seen = within_margins(batch([[0.0, 0.0, 1.0, 1.0]], [False], 100, 200), [0.03, 0.25, 0.03, 0.01])[0]
    expected = np.zeros((100, 200), bool)
    expected[3:75, 6:198] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_margins_follow_the_picture_through_crop_and_mirror(mirror: bool) -> None:
    """A picture of 200×100 pixels with a frame of 20 of padding, of which a part is seen."""
    whole = np.zeros((140, 240), bool)
    whole[20 + 10 : 20 + 80, 20 + 30 : 20 + 196] = True
    windows, expected = [], []
    for x, y in ((0, 0), (20, 20), (40, 60), (100, 30), (140, 80)):
        windows.append([(x - 20) / 200, (y - 20) / 100, (x + 80) / 200, (y + 40) / 100])
        part = whole[y : y + 60, x : x + 100]
        expected.append(part[:, ::-1] if mirror else part)
    seen = within_margins(batch(windows, [mirror] * 5, 60, 100), [0.1, 0.2, 0.15, 0.02])
    np.testing.assert_array_equal(seen, np.stack(expected))


def test_padding_is_outside_the_picture_without_margins_too() -> None:
    seen = within_margins(batch([[0.5, 0.5, 1.5, 1.5]], [False], 10, 20), [0.0, 0.0, 0.0, 0.0])[0]
    assert seen[:5, :10].all()
    assert int(seen.sum()) == 50


def test_offline_labels_take_the_place_of_the_teachers_with_a_weight_of_one_where_they_are_seen() -> None:
    random = np.random.RandomState(0)
    labels, offline = random.randint(0, CLASSES, SHAPE), random.choice([0, 3, 255], SHAPE).astype(np.uint8)
    own = Trusted(torch.from_numpy(labels), torch.full(SHAPE, 0.25))
    seen = random.rand(*SHAPE) < 0.8
    found = offline_first(own, torch.from_numpy(offline), torch.from_numpy(seen))
    given = (offline != 255) & seen
    np.testing.assert_array_equal(found.labels, np.where(given, offline, labels))
    np.testing.assert_array_equal(found.weights, np.where(given, 1.0, 0.25))
    assert offline_first(own, None, torch.from_numpy(seen)) is own


def test_labels_of_another_size_are_the_nearest() -> None:
    labels = torch.from_numpy(np.random.RandomState(0).randint(0, 255, (2, 6, 8)).astype(np.uint8))
    assert labels_at(labels, (6, 8)) is labels
    twice = np.repeat(np.repeat(labels.numpy(), 2, 1), 2, 2)
    np.testing.assert_array_equal(labels_at(labels, (12, 16)), twice)
    np.testing.assert_array_equal(labels_at(torch.from_numpy(twice), (6, 8)), labels)
    third = np.repeat(np.repeat(labels.numpy(), 3, 1), 3, 2)
    np.testing.assert_array_equal(labels_at(torch.from_numpy(third), (6, 8)), labels)
