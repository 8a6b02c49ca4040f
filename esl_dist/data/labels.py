"""Classes: names, colours, and the map from a data set's raw ids to train ids.

A train id is a class's position in its class set; the network's channel c scores train id c. Raw ids stay in files and
shards, the map is applied when a label is read, so one packed data set serves every class set its description names.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esl_dist.errors import UserError
from esl_dist.files import refuse_as_label, shortened

IGNORE_INDEX = 255
"""Train id of a pixel that no loss and no score counts."""

CITYSCAPES_19 = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
CITYSCAPES_16 = tuple(name for name in CITYSCAPES_19 if name not in ("terrain", "truck", "train"))
CITYSCAPES_13 = tuple(name for name in CITYSCAPES_16 if name not in ("wall", "fence", "pole"))
"""The classes over which the field takes its means: 16 and 13 are for SYNTHIA as the source."""

RAW_IDS = 2**16
"""Raw ids have at most 16 bits."""


@dataclass(frozen=True)
class SemanticClass:
    """One class: its name, its colour (red, green, blue; 0 to 255) and the raw ids that mean it."""

    name: str
    color: tuple[int, int, int]
    ids: tuple[int, ...]


ClassSet = tuple[SemanticClass, ...]
"""Classes in the order of their train ids."""


def class_set_from(entries: Any, origin: str) -> ClassSet:
    """Read a class set from a list of plain dictionaries with `name`, `color` and `ids`.

    Raises:
        UserError: no list of classes, a class without a name that can be printed or with that of another, a colour that
            is none, a raw id out of [0, 65535] or given twice, no class or more than 255 of them; the message starts
            with `origin`.
    """
    if not isinstance(entries, list):
        raise UserError(f"{origin}: expected a list of classes, got {shortened(entries)}")
    classes: list[SemanticClass] = []
    owner: dict[int, str] = {}
    for position, entry in enumerate(entries):
        try:
            name, color, ids = entry["name"], _whole_numbers(entry["color"]), _whole_numbers(entry["ids"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{origin}: class {position}: expected name, color [r, g, b] and ids, got {shortened(entry)}"
            ) from error
        if not isinstance(name, str):
            raise UserError(
                f"{origin}: class {position}: name {shortened(name)} is no text; write it in quotation marks"
            )
        refuse_as_label(name, f"{origin}: class {position}: name")
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise UserError(
                f"{origin}: class {name}: color {list(color[:4])} is not [r, g, b] with values from 0 to 255"
            )
        for raw_id in ids:
            if not 0 <= raw_id < RAW_IDS:
                raise UserError(f"{origin}: class {name}: raw id {raw_id} is not in [0, {RAW_IDS - 1}]")
            if raw_id in owner:
                raise UserError(f"{origin}: raw id {raw_id} belongs to class {owner[raw_id]} and to class {name}")
            owner[raw_id] = name
        if name in class_names(tuple(classes)):
            raise UserError(f"{origin}: two classes have the name {name}")
        classes.append(SemanticClass(name, (color[0], color[1], color[2]), ids))
    if not 1 <= len(classes) <= IGNORE_INDEX:
        raise UserError(f"{origin}: {len(classes)} classes; expected 1 to {IGNORE_INDEX}")
    return tuple(classes)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError(f"{values} is not a list of whole numbers")
    return tuple(values)


def class_set_to(classes: ClassSet) -> list[dict[str, Any]]:
    """Return a class set as plain dictionaries, the inverse of `class_set_from`."""
    return [{"name": item.name, "color": list(item.color), "ids": list(item.ids)} for item in classes]


def identity_class_set(classes: ClassSet) -> ClassSet:
    """Return the same classes for labels that hold train ids already, such as pseudo-labels."""
    return tuple(SemanticClass(item.name, item.color, (train_id,)) for train_id, item in enumerate(classes))


def class_names(classes: ClassSet) -> list[str]:
    """Return the class names in the order of their train ids."""
    return [item.name for item in classes]


def train_id_table(classes: ClassSet) -> NDArray[np.uint8]:
    """Return the train id of every raw id, shape (65536,); `IGNORE_INDEX` for raw ids of no class."""
    table = np.full(RAW_IDS, IGNORE_INDEX, np.uint8)
    for train_id, item in enumerate(classes):
        table[list(item.ids)] = train_id
    return table
