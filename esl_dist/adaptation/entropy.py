"""Statistics of scores per class that add up: histograms of 16-bit scores, and the sorted-median rule read off them.

ESL's threshold of a class is an order statistic of the scores of every pixel of the whole data set predicted as it.
Scores in [0, 1] are quantised to 65,536 levels; a histogram of them is exact for order statistics of the quantised
scores, has the same size for one picture and a million, and histograms of parts add up to that of the whole. So ranks
need one sum.
"""

import torch
from torch import Tensor

HIGHEST_LEVEL = 65535
"""Level of score 1; level l stands for score l / 65535."""


def quantise(scores: Tensor) -> Tensor:
    """Return the levels of scores in [0, 1], rounded to the nearest: int32, same shape."""
    return (scores.clamp(0, 1) * HIGHEST_LEVEL).round().to(torch.int32)


def class_histograms(labels: Tensor, levels: Tensor, classes: int) -> Tensor:
    """Count levels per predicted class.

    Args:
        labels: predicted train ids in [0, classes), any shape.
        levels: levels in [0, 65535], same shape.
        classes: number of classes.

    Returns:
        int64 (classes, 65536), on the CPU.
    """
    bins = HIGHEST_LEVEL + 1
    flat = labels.flatten().to(torch.int64) * bins + levels.flatten()
    return torch.bincount(flat, minlength=classes * bins).reshape(classes, bins).cpu()


def median_levels(histograms: Tensor) -> list[int | None]:
    """Return, per class, the level at index round(n / 2), half to even, of its n sorted levels; None where n is 0.

    Args:
        histograms: int64 (classes, 65536).
    """
    medians: list[int | None] = []
    for counts in histograms:
        cumulative = counts.cumsum(0)
        total = int(cumulative[-1])
        if total == 0:
            medians.append(None)
            continue
        index = torch.tensor(round(total / 2))
        medians.append(int(torch.searchsorted(cumulative, index, right=True)))
    return medians
