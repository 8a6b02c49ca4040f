"""Maps resized to the size of labels a few rows at a time, for results that need no whole resized map.

Resized logits of 19 classes at 2048×1024 take 159 MB; of them a class and a score a pixel are wanted. What lies between
two rows of a map are weighted means of these two: of so many as take little memory all is computed before the next.
Resizing is bilinear with corners aligned, as published (`esl_dist.models.resizing`). Each row is computed by the same
operations wherever a tile begins, so that no result depends on the tiles.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_BYTES = 2**22
"""Of a tile, on a CPU. Half as large it would stay in a nearer cache, and threads would wait for Python more often than
that gains. A GPU gets all rows at once."""


def resized_rows(maps: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Resize maps in tiles of rows, from top to bottom.

    Args:
        maps: (batch, channels, …, …), floating point.
        size: height and width of the result.

    Yields:
        which rows of the result, and the resized maps there: (batch, channels, rows, width).
    """
    height, width = size
    if maps.device.type != "cpu":
        yield slice(0, height), F.interpolate(maps, size, mode="bilinear", align_corners=True)
        return
    wide = F.interpolate(maps, (maps.shape[2], width), mode="bilinear", align_corners=True)
    places, weight = row_places(maps.shape[2], height, wide)
    above = places.tolist()
    most = max(1, TILE_BYTES // (wide[:, :, 0].numel() * wide.element_size()))
    for start in range(0, height, most):
        end = min(start + most, height)
        tile = wide.new_empty(*wide.shape[:2], end - start, width)
        for row, run in groupby(range(start, end), key=above.__getitem__):
            rows, next_row = list(run), min(row + 1, maps.shape[2] - 1)
            weights, part = weight[rows[0] : rows[-1] + 1, None], tile[:, :, rows[0] - start : rows[-1] + 1 - start]
            torch.lerp(wide[:, :, row, None], wide[:, :, next_row, None], weights, out=part)
        yield slice(start, end), tile


def highest_class(scores: Tensor) -> Tensor:
    """Return which of (batch, classes, height, width) is the highest at each pixel: int64 (batch, height, width).

    Of equal ones on a CPU the first; where one is no number, it is any.
    """
    if scores.device.type != "cpu":
        return scores.max(1).indices
    # torch.max compares one number after the other here. Pooling with channels last goes over many channels at once; so
    # pixels are its channels, and classes what it pools over.
    batch, classes, height, width = scores.shape
    pixels = scores.reshape(batch, classes, 1, height * width).permute(0, 3, 1, 2)
    indices: Tensor = F.max_pool2d(pixels, (classes, 1), return_indices=True)[1]
    return indices.view(batch, height, width)


def row_places(before: int, after: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each of `after` rows, which of `before` is at or above it, and the weight of the next, in [0, 1)."""
    span = max(after - 1, 1)
    # In whole numbers, so that a row that lies on another has exactly its values.
    places = torch.arange(after, device=like.device) * (before - 1)
    return places // span, (places % span).to(like.dtype) / span
