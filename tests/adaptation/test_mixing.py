"""ClassMix and masks: which pixels of a picture stay, of its own draws."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.masks import masked
from esl_dist.adaptation.mixing import class_mask


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def labels_of(classes: Sequence[int], seed: int = 0) -> Tensor:
    """Return a label (6, 8) in which each of the classes occurs."""
    random = np.random.RandomState(seed)
    drawn = np.concatenate([classes, random.choice(classes, 48 - len(classes))])
    return torch.from_numpy(random.permutation(drawn).astype(np.uint8).reshape(6, 8))


@pytest.mark.parametrize("classes", [(3,), (0, 255), (0, 1, 5), (2, 4, 6, 18, 255), (255,)])
def test_half_of_a_pictures_classes_rounded_up_are_chosen_whole(classes: tuple[int, ...]) -> None:
    labels = torch.stack([labels_of(classes, seed) for seed in range(20)])
    for label, chosen in zip(labels.numpy(), class_mask(labels, generators(20)).numpy(), strict=True):
        inside, outside = set(label[chosen].tolist()), set(label[~chosen].tolist())
        assert len(inside) == math.ceil(len(classes) / 2)
        assert inside | outside == set(classes)
        assert inside.isdisjoint(outside)


def test_the_classes_are_those_of_the_lowest_draws_of_the_pictures_generator() -> None:
    labels = torch.stack([labels_of((0, 3, 7, 18, 255), seed) for seed in range(8)])
    draws = [torch.rand(256, generator=one, dtype=torch.float64).numpy() for one in generators(8)]
    for label, chosen, drawn in zip(labels.numpy(), class_mask(labels, generators(8)).numpy(), draws, strict=True):
        present = np.unique(label)
        lowest = present[np.argsort(drawn[present])][:3]
        np.testing.assert_array_equal(chosen, np.isin(label, lowest))


def test_each_class_is_chosen_as_often_as_any_other() -> None:
    labels = labels_of((1, 2, 3, 4)).expand(4000, 6, 8)
    chosen = class_mask(labels, generators(4000))
    shares = [float(chosen[:, labels[0] == one][:, 0].double().mean()) for one in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.5] * 4, abs=0.04), "five standard deviations"


def test_a_picture_is_mixed_by_its_own_classes_and_draws_whatever_stands_beside_it() -> None:
    labels = torch.stack([labels_of((0, 1)), labels_of((2, 3, 4)), labels_of((5,))])
    together = class_mask(labels, generators(3))
    assert torch.equal(together[1:2], class_mask(labels[1:2], generators(1, first=1)))


COLOR = torch.tensor([1.5, -2.0, 0.25])


@pytest.mark.parametrize(("size", "block"), [((64, 96), 32), ((50, 70), 16), ((20, 30), 64)])
def test_blocks_are_hidden_where_the_draws_of_a_grid_are_up_to_the_ratio(size: tuple[int, int], block: int) -> None:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, *size, generator=random)
    rows, columns = max(1, round(size[0] / block)), max(1, round(size[1] / block))
    found = masked(images, COLOR, generators(3), settings.Masks(ratio=0.5, block=block)).numpy()
    for number, generator in enumerate(generators(3)):
        draws = torch.rand(1, rows, columns, generator=generator, dtype=torch.float64)[0].numpy()
        for y, x in np.ndindex(size):
            kept = draws[y * rows // size[0], x * columns // size[1]] > 0.5
            np.testing.assert_array_equal(found[number, :, y, x], images[number, :, y, x] if kept else COLOR)


def test_as_many_blocks_are_hidden_as_asked_on_average() -> None:
    images = torch.ones(400, 1, 80, 80)
    hidden = masked(images, torch.zeros(1), generators(400), settings.Masks(ratio=0.7, block=8)) == 0
    assert float(hidden.double().mean()) == pytest.approx(0.7, abs=0.012), "five standard deviations"
    assert torch.equal(masked(images, torch.zeros(1), generators(400), settings.Masks(ratio=0.0)), images)
