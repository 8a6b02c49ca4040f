"""Scores are those of the published evaluation."""

import numpy as np
import pytest

from esl_dist.prediction.confusion import confusion_matrix
from esl_dist.reporting.scores import intersection_over_union, mean_iou, scores_of
from tests.reference.arrays import arrays, needs_reference, on_device

pytestmark = [pytest.mark.reference, needs_reference]


def test_confusion_and_iou_are_the_published_ones() -> None:
    expected = arrays("evaluation")
    classes = len(expected["iou"])
    labels, predictions = on_device(expected["labels"]), on_device(expected["predictions"])
    confusion = sum(
        confusion_matrix(label, prediction, classes) for label, prediction in zip(labels, predictions, strict=True)
    )
    confusion = confusion.cpu().numpy()
    assert np.array_equal(confusion, expected["confusion"])
    iou = intersection_over_union(confusion)
    np.testing.assert_allclose(iou, expected["iou"], rtol=0, atol=1e-12)
    assert abs(mean_iou(iou) - float(expected["miou"])) < 1e-12
    names = [f"class {number}" for number in range(classes)]
    assert abs(scores_of(confusion, names)["miou"] - float(expected["miou"])) < 1e-12
