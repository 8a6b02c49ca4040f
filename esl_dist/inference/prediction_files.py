"""Predictions as PNG files, <key>.png at a picture's own size: colours of the classes, train ids or raw ids."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.data.images import Label, encode_png
from esl_dist.data.labels import ClassSet
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.files import whole_file
from esl_dist.reporting.pictures import class_colors


def picture_name(shards: ShardReader, position: int) -> str:
    """Return the file name of a sample's prediction, which may hold folders.

    Raises:
        UserError: the sample's key leads out of a folder.
    """
    key = shards.key(position)
    if Path(key).is_absolute() or ".." in Path(key).parts:
        raise UserError(f"{shards.where(position)}: its key leads out of a folder; it is not to be trusted")
    return f"{key}.png"


def are_written(shards: ShardReader, predictions: Path) -> bool:
    """Say whether the predictions of all samples are in a folder; a kill may have left some of them."""
    return all((predictions / picture_name(shards, position)).is_file() for position in range(len(shards)))


def raw_id_table(classes: ClassSet) -> Label:
    """Return the raw id of each train id, shape (classes,): the first of each class, in 8 bits where they suffice.

    Raises:
        UserError: a class without raw ids.
    """
    for item in classes:
        if not item.ids:
            raise UserError(
                f"prediction_format=raw_ids: the class {item.name} has no raw ids; name the data set whose ids are "
                "wanted with classes_from=…, or choose train_ids"
            )
    ids = [item.ids[0] for item in classes]
    if max(ids) < 2**8:
        return np.array(ids, np.uint8)
    return np.array(ids, np.uint16)


def write_prediction(file: Path, prediction: Tensor, classes: ClassSet, kind: str) -> None:
    """Write train ids, (height, width), as `colors`, `train_ids` or `raw_ids`; whole or not at all."""
    with whole_file(file) as opened:
        opened.write(encode_png(_as_written(prediction, classes, kind)))


def _as_written(prediction: Tensor, classes: ClassSet, kind: str) -> Label:
    if kind == "colors":
        return cv2.cvtColor(class_colors(prediction, classes), cv2.COLOR_RGB2BGR)  # type: ignore[return-value]
    train_ids: NDArray[np.uint8] = prediction.cpu().numpy().astype(np.uint8)
    return train_ids if kind == "train_ids" else raw_id_table(classes)[train_ids]
