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
    """Return the levels of scores in [0, 1], rounded to the nearest: uint16, same shape."""
    return scores.clamp(0, 1).mul_(HIGHEST_LEVEL).round_().to(torch.uint16)


def empty_histograms(classes: int, device: torch.device) -> Tensor:
    """Return the histograms of nothing: int64 (classes, 65536)."""
    return torch.zeros(classes, HIGHEST_LEVEL + 1, dtype=torch.int64, device=device)


def count_pairs(counts: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add 1 to `counts` at each pair of `rows` and `columns`; the host does not wait for the device.

    Args:
        counts: int64, of two dimensions and fewer than 2**31 places, changed in place.
        rows: indices of the first dimension, any integers of any shape, on the device of `counts`.
        columns: indices of the second, same shape.
    """
    places = rows.to(torch.int32, copy=True).mul_(counts.shape[1]).add_(columns.to(torch.int32))
    # torch.bincount would read the highest place back from a GPU, and make histograms of 10 MB a picture.
    one = torch.ones((), dtype=counts.dtype, device=counts.device)
    counts.view(-1).index_add_(0, places.flatten(), one.expand(places.numel()))


def count_levels(histograms: Tensor, labels: Tensor, levels: Tensor) -> None:
    """Add the levels of pixels to the histograms of their predicted classes.

    Args:
        histograms: int64 (classes, 65536), changed in place.
        labels: predicted train ids in [0, classes), any shape.
        levels: levels in [0, 65535], same shape.
    """
    count_pairs(histograms, labels, levels)


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
