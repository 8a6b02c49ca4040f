"""Confusion matrices, which add up over pictures and ranks."""

import torch
from torch import Tensor

from esl_dist.adaptation.entropy import count_pairs


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count pixels by label (rows) and prediction (columns): int64 (classes, classes), on their device.

    Both are train ids, of the same shape; where one is an id of no class, such as `IGNORE_INDEX`, nothing is counted.
    """
    # With a row and a column for what is ignored, no pixel has to be picked out, which would make the host wait.
    counts = torch.zeros(classes + 1, classes + 1, dtype=torch.int64, device=labels.device)
    count_pairs(counts, labels.clamp(max=classes), predictions.clamp(max=classes))
    return counts[:classes, :classes]
