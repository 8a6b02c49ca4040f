"""A confusion matrix counts every pixel that has a label and a prediction, once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.prediction.confusion import confusion_matrix

CLASSES = 3
ids = st.sampled_from([*range(CLASSES), 255])
pixels = st.lists(st.tuples(ids, ids), max_size=40)
"""Label and prediction of each pixel."""


def counted(drawn: list[tuple[int, int]], kinds: tuple[torch.dtype, torch.dtype]) -> np.ndarray:
    labels = torch.tensor([label for label, _ in drawn], dtype=kinds[0])
    predictions = torch.tensor([prediction for _, prediction in drawn], dtype=kinds[1])
    return confusion_matrix(labels, predictions, CLASSES).numpy()


@pytest.mark.parametrize("kinds", [(torch.uint8, torch.int64), (torch.uint8, torch.uint8), (torch.int64, torch.int64)])
@given(drawn=pixels)
@settings(deadline=None, max_examples=60)
def test_it_counts_pairs_of_label_and_prediction(
    kinds: tuple[torch.dtype, torch.dtype], drawn: list[tuple[int, int]]
) -> None:
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for label, prediction in drawn:
        if 255 not in (label, prediction):
            expected[label, prediction] += 1
    confusion = counted(drawn, kinds)
    assert confusion.dtype == np.int64
    assert np.array_equal(confusion, expected)


@given(drawn=pixels, cut=st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_matrices_of_parts_add_up(drawn: list[tuple[int, int]], cut: int) -> None:
    kinds = (torch.uint8, torch.int64)
    parts = counted(drawn[:cut], kinds) + counted(drawn[cut:], kinds)
    assert np.array_equal(parts, counted(drawn, kinds))


def test_pictures_of_many_classes_do_not_overflow() -> None:
    classes = 255
    labels = torch.full((2, 8, 8), classes - 1, dtype=torch.uint8)
    confusion = confusion_matrix(labels, labels, classes)
    assert confusion.sum() == confusion[-1, -1] == 128
