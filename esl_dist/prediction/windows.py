"""Logits of a picture from several passes: windows that slide over it, mirror images; averaged.

Logits are averaged, not probabilities, as mmsegmentation does where windows overlap and as an ensemble is here: a sure
window outweighs an unsure one. Windows lie on a grid as there: each begins a stride after the one before, and the last
of a row or column is moved back until it ends with the picture. A pass of the whole picture stays at the network's
resolution; resizing is linear and has aligned corners, so the mirrored map of a mirrored picture lies pixel on pixel.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor

from esl_dist.data.images import Size
from esl_dist.models.row_tiles import resized_rows

Score = Callable[[Tensor], Tensor]
"""Pictures (batch, 3, height, width) → logits (batch, classes, …, …), at any resolution."""


class Sight(NamedTuple):
    """How a picture is looked at.

    Attributes:
        window: width and height in pixels of what is seen at once; None: the whole picture.
        overlap: least share of a window that the next one covers, too.
        mirror: whether its mirror image is seen as well.
    """

    window: Size | None = None
    overlap: float = 0.0
    mirror: bool = False


def averaged_logits(score: Score, images: Tensor, sight: Sight) -> Tensor:
    """Return the logits of pictures, averaged over all passes: (batch, classes, …, …), float32.

    Of several windows they have the pictures' height and width, else the network's resolution.
    """
    height, width = images.shape[2:]
    if sight.window is None or (sight.window[0] >= width and sight.window[1] >= height):
        return _with_mirrored(score, images) if sight.mirror else score(images)
    total: Tensor | None = None
    passes = images.new_zeros(height, width)
    for rows, columns in windows((width, height), sight.window, sight.overlap):
        seen = images[:, :, rows, columns]
        logits = _with_mirrored(score, seen) if sight.mirror else score(seen)
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], height, width)
        part = total[:, :, rows, columns]
        for tile, resized in resized_rows(logits, (seen.shape[2], seen.shape[3])):
            part[:, :, tile] += resized
        passes[rows, columns] += 1
    assert total is not None
    return total.div_(passes)


def _with_mirrored(score: Score, images: Tensor) -> Tensor:
    return (score(images) + score(images.flip(3)).flip(3)) / 2


def windows(size: Size, window: Size, overlap: float) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the windows that cover a picture, row by row.

    Args:
        size: width and height of the picture.
        window: of a window, cut to the picture's.
        overlap: least share of a window's side that the next one covers, in [0, 1).
    """
    columns, rows = (list(_places(*sides, overlap)) for sides in zip(size, window, strict=True))
    yield from product(rows, columns)


def _places(side: int, window: int, overlap: float) -> Iterator[slice]:
    window = min(window, side)
    # 1000 * (1 - 0.8) is 199.99999999999997.
    stride = max(1, int(round(window * (1 - overlap), 6)))
    for start in range(0, side - window + stride, stride):
        end = min(start + window, side)
        yield slice(end - window, end)
