"""Predictions as PNG files at a picture's own size: colours of the classes, train ids or raw ids, and for pictures of
one's own also what lies over the picture, and how sure the network is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.data.images import Label, encode_palette, encode_png
from esl_dist.data.labels import ClassSet
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.files import whole_file


@dataclass(frozen=True)
class PredictionFiles:
    """A folder with a file for the prediction of each sample.

    Attributes:
        folder: where they lie.
        shards: the samples.
        form: `colors`, `train_ids` or `raw_ids`.
        values: what is written for each train id (`values_of`).
    """

    folder: Path
    shards: ShardReader
    form: str
    values: Label

    def file(self, position: int) -> Path:
        """Return the file of a sample's prediction, in folders where its key has some; an index has no other keys."""
        return self.folder / f"{self.shards.key(position)}.png"

    def are_written(self) -> bool:
        """Say whether the predictions of all samples are there; a kill may have left some of them."""
        return all(self.file(position).is_file() for position in range(len(self.shards)))

    def write(self, position: int, prediction: Tensor) -> None:
        """Write a sample's prediction, train ids (height, width) on the host; whole or not at all."""
        with whole_file(self.file(position)) as opened:
            opened.write(encode_png(self.values[prediction.numpy()]))


def values_of(classes: ClassSet, form: str) -> Label:
    """Return what is written for each train id: blue, green and red (classes, 3), or a number (classes,).

    The raw id of a class is its first; 16 bits are taken only where 8 do not suffice.

    Raises:
        UserError: raw ids of a class that has none.
    """
    if form == "colors":
        return np.array([item.color[::-1] for item in classes], np.uint8)
    if form == "train_ids":
        return np.arange(len(classes), dtype=np.uint8)
    for item in classes:
        if not item.ids:
            raise UserError(
                f"raw_ids cannot be written: the class {item.name} has no raw ids; name the data set whose ids are "
                "wanted with classes_from=…, or choose train_ids"
            )
    ids = [item.ids[0] for item in classes]
    return np.array(ids, np.uint8) if max(ids) < 2**8 else np.array(ids, np.uint16)


Pixels = NDArray[np.uint8]

SCORES = ("entropy", "confidence")
"""Kinds of files that say how sure the network is."""


@dataclass(frozen=True)
class Predicted:
    """What is known of a picture of one's own, each array of its height and width.

    Attributes:
        labels: predicted train ids.
        picture: its pixels, blue, green and red; None where nothing is laid over it.
        scores: `entropy` and `confidence` in grey levels (`prediction.predictions.grey_scores`), as far as asked for.
    """

    labels: Pixels
    picture: Pixels | None = None
    scores: dict[str, Pixels] = field(default_factory=dict)


Encode = Callable[[Predicted], bytes]


def encoder_of(kind: str, classes: ClassSet) -> Encode:
    """Return the function that makes a file's bytes, PNG, of a prediction.

    Args:
        kind: `train_ids`, `raw_ids`, `colors`, `overlay`, `entropy` or `confidence`.
        classes: with the colours and raw ids that are written.

    Raises:
        UserError: raw ids of a class that has none.
    """
    if kind in SCORES:
        return lambda predicted: encode_png(predicted.scores[kind])
    values = values_of(classes, "colors" if kind == "overlay" else kind)
    if kind == "overlay":
        return lambda predicted: encode_png(mixed(predicted.picture, values[predicted.labels]))
    if kind == "colors" or values.dtype != np.uint8:
        return lambda predicted: encode_png(values[predicted.labels])
    palette = np.zeros((256, 3), np.uint8)
    palette[values] = [item.color for item in classes]
    return lambda predicted: encode_palette(values[predicted.labels].astype(np.uint8, copy=False), palette)


def mixed(picture: Pixels | None, colors: Label) -> Pixels:
    """Return the mean of a picture and the colours of its classes, each (height, width, 3); halves are cut."""
    assert picture is not None
    mean: Pixels = ((picture.astype(np.uint16) + colors) // 2).astype(np.uint8)
    return mean
