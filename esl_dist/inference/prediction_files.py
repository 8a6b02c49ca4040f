"""Predictions as PNG files, <key>.png at a picture's own size: colours of the classes, train ids or raw ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from esl_dist.data.images import Label, encode_png
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
                f"prediction_format=raw_ids: the class {item.name} has no raw ids; name the data set whose ids are "
                "wanted with classes_from=…, or choose train_ids"
            )
    ids = [item.ids[0] for item in classes]
    return np.array(ids, np.uint8) if max(ids) < 2**8 else np.array(ids, np.uint16)
