"""Maps resized to the size of labels a few rows at a time, for results that need no whole resized map.

Resized logits of 19 classes at 2048×1024 take 159 MB; of them a class and a score a pixel are wanted. What lies between
two rows of a map are weighted means of these two: a few such rows stay in a processor's cache until all is computed of
them. Resizing is bilinear with corners aligned, as published (`esl_dist.models.resizing`). Each row is computed by the
same operations wherever a tile begins, so that no result depends on the tiles.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_BYTES = 2**20
"""Of a tile, on a CPU: half of what its nearest large cache holds. A GPU gets all rows at once."""


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
    above, weight = row_places(maps.shape[2], height, wide)
    most = max(1, TILE_BYTES // (wide[:, :, 0].numel() * wide.element_size()))
    for row, rows in _tiles(above.tolist(), most):
        next_row = min(row + 1, maps.shape[2] - 1)
        yield rows, torch.lerp(wide[:, :, row, None], wide[:, :, next_row, None], weight[rows, None])


def row_places(before: int, after: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each of `after` rows, which of `before` is at or above it, and the weight of the next, in [0, 1)."""
    span = max(after - 1, 1)
    # In whole numbers, so that a row that lies on another has exactly its values.
    places = torch.arange(after, device=like.device) * (before - 1)
    return places // span, (places % span).to(like.dtype) / span


def _tiles(above: list[int], most: int) -> Iterator[tuple[int, slice]]:
    """Cut rows into runs of at most `most` that lie below the same row of the map; yields that row with each run."""
    for row, run in groupby(range(len(above)), key=above.__getitem__):
        rows = list(run)
        for start in range(rows[0], rows[-1] + 1, most):
            yield row, slice(start, min(start + most, rows[-1] + 1))
