"""What a network sees of a picture in training: the picture scaled, a part of it, perhaps its mirror image.

The pipeline of DAFormer (arXiv 2111.14887: resize, random crop with a largest share of one class, mirror) and of
VFM-UDA, which draws the scale, too. Picture and label are resized as a whole and cut after that, so a part has the
pixels that the whole picture has there, bit for bit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esl_dist.data.images import Array, Size, padded
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.sampling import VIEW, DrawKey, random_numbers

TRIES = 10
"""Places at which a part is tried; the last one is taken whatever it shows."""


@dataclass(frozen=True)
class Views:
    """How the pictures of a domain are seen.

    Attributes:
        scale: least and greatest factor on the size at which a picture is read.
        crop: width and height of the part that is seen; None: all of it.
        mirror: whether every second picture, in the mean, is seen as its mirror image.
        largest_class_share: of the labelled pixels of a part; with one class at this share or more, another is tried.
        least_in_crop: of the class for which the sample was chosen; with no more pixels of it, another part is tried.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    crop: Size | None = None
    mirror: bool = False
    largest_class_share: float = 1.0
    least_in_crop: int = 0

    @property
    def give_sizes(self) -> bool:
        """Whether picture and label get their size here, and thus the same."""
        return self.crop is not None or self.scale != (1.0, 1.0)


AS_IT_IS = Views()


class Draw(NamedTuple):
    """What is drawn for one picture.

    Attributes:
        scale: the factor on its size.
        mirrored: whether it is mirrored.
        corners: float64 (`TRIES`, 2), the left and top of the parts that are tried, as shares in [0, 1) of all places.
    """

    scale: float
    mirrored: bool
    corners: NDArray[np.float64]


NOTHING_DRAWN = Draw(1.0, False, np.zeros((1, 2)))


class Window(NamedTuple):
    """A part of a picture: its sides in pixels from the left and the top; right and bottom may lie outside."""

    left: int
    top: int
    right: int
    bottom: int


def draw(views: Views, key: DrawKey | None) -> Draw:
    """Draw for the sample of `key`; nothing for None."""
    if key is None or views == AS_IT_IS:
        return NOTHING_DRAWN
    # All at once, so that none depends on whether another is used.
    scale, mirror, *corners = random_numbers(key, VIEW).random_sample(2 + 2 * TRIES)
    least, greatest = views.scale
    return Draw(least + (greatest - least) * scale, views.mirror and mirror < 0.5, np.reshape(corners, (TRIES, 2)))


def scaled(size: Size, factor: float) -> Size:
    """Return a size times a factor, rounded, of at least one pixel a side."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def window(views: Views, drawn: Draw, size: Size, label: NDArray[np.uint8] | None, train_id: int | None) -> Window:
    """Return the part of a resized picture that is seen.

    Args:
        views: with a `crop`.
        drawn: see `Draw`.
        size: of the picture; where it is smaller than the part, its left or top is at 0.
        label: train ids, (height, width), of the picture's size or padded; None: any part will do.
        train_id: a class of which the part should have more than `least_in_crop` pixels; None: none.
    """
    assert views.crop is not None
    width, height = views.crop
    for across, down in drawn.corners:
        # As many places are possible, all as likely.
        left = int(across * (max(size[0] - width, 0) + 1))
        top = int(down * (max(size[1] - height, 0) + 1))
        tried = Window(left, top, left + width, top + height)
        if label is None or _shows_enough(label[top : top + height, left : left + width], views, train_id):
            break
    return tried


def _shows_enough(label: NDArray[np.uint8], views: Views, train_id: int | None) -> bool:
    if views.largest_class_share == 1 and train_id is None:
        return True
    pixels = np.bincount(label.ravel(), minlength=IGNORE_INDEX)[:IGNORE_INDEX]
    labelled = pixels.sum()
    if views.largest_class_share < 1 and (labelled == 0 or pixels.max() / labelled >= views.largest_class_share):
        return False
    return train_id is None or bool(pixels[train_id] > views.least_in_crop)


def seen(array: Array, part: Window | None, mirrored: bool, value: int) -> Array:
    """Return what is seen of an array of shape (height, width, …): a part of it (None: all), perhaps mirrored.

    What of the part lies outside is `value`. The same array if all of it is seen as it is.
    """
    if part is not None:
        shown = array[part.top : part.bottom, part.left : part.right]
        array = padded(shown, (part.right - part.left, part.bottom - part.top), value)
    # A column of one pixel counts as contiguous backwards, too, which torch does not take: a copy.
    result = array[:, ::-1].copy() if mirrored else np.ascontiguousarray(array)
    return result  # type: ignore[return-value]


def as_shares(part: Window, size: Size) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a part as shares of a picture of `size`."""
    width, height = size
    return part.left / width, part.top / height, part.right / width, part.bottom / height


def inside(part: Window, size: Size) -> Size:
    """Return width and height of what of a part lies in a picture of `size`."""
    return max(0, min(part.right, size[0]) - part.left), max(0, min(part.bottom, size[1]) - part.top)
