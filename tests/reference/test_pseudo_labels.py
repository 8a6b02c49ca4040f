"""Thresholds and pseudo-labels are those of the published program, but for the width of a level."""

import numpy as np
import pytest
import torch

from esl_dist.adaptation.entropy import class_histograms
from esl_dist.adaptation.pseudo_labels import TRUST, keep_trusted, label_and_score, thresholds
from esl_dist.models.resizing import upsample
from tests.reference.arrays import arrays, needs_reference

pytestmark = [pytest.mark.reference, needs_reference]

CLASSES = 19
LEVEL = 1 / 65536
FLOOR = 0.1


def test_thresholds_and_pseudo_labels_are_the_published_ones() -> None:
    expected = arrays("pseudo_labels")
    size = tuple(int(side) for side in expected["output_size"])
    trust = TRUST["entropy"]
    histograms = torch.zeros(CLASSES, 65536, dtype=torch.int64)
    pictures = []
    for logits in torch.from_numpy(expected["logits"]):
        labels, levels = label_and_score(logits[None], (size[0], size[1]), trust)
        histograms += class_histograms(labels, levels, CLASSES)
        pictures.append((labels, levels))
    limits = thresholds(histograms, trust, FLOOR)
    scores = np.array([limit.score for limit in limits])
    # A median of 0 stands for a class that is never predicted.
    assert np.abs(scores - expected["threshold"]).max() <= LEVEL
    assert np.abs(scores - np.maximum(expected["median_entropy"], FLOOR)).max() <= LEVEL

    kept = torch.cat([keep_trusted(labels, levels, limits, trust) for labels, levels in pictures]).numpy()
    labels = torch.cat([labels for labels, _ in pictures]).numpy()
    probabilities = upsample(torch.softmax(torch.from_numpy(expected["logits"]).double(), 1), size)
    entropy = torch.special.entr(probabilities).sum(1).numpy() / np.log(CLASSES)
    clear = np.abs(entropy - expected["threshold"][labels]) > LEVEL
    assert clear.mean() > 0.99
    assert np.array_equal(kept[clear], expected["pseudo_labels"][clear])
