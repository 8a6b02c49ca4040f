"""Classes: names, colours, and the map from a data set's raw ids to train ids.

A train id is a class's position in its class set; the network's channel c scores train id c. Raw ids stay in files and
shards, the map is applied when a label is read, so one packed data set serves every class set its description names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from esl_dist.checked import Content, Label, read, whole_number
from esl_dist.errors import UserError

IGNORE_INDEX = 255
"""Train id of a pixel that no loss and no score counts."""

CITYSCAPES_19 = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_16 = tuple(name for name in CITYSCAPES_19 if name not in ("terrain", "truck", "train"))
CITYSCAPES_13 = tuple(name for name in CITYSCAPES_16 if name not in ("wall", "fence", "pole"))
"""The classes over which the field takes its means: 16 and 13 are for SYNTHIA as the source."""

RAW_IDS = 2**16
"""Raw ids have at most 16 bits."""

Color = tuple[int, int, int]
"""Red, green, blue; 0 to 255."""


def read_color(content: Content) -> Color:
    """Read a colour from a list."""
    red, green, blue = content.whole_numbers(3, 0, 255)
    return red, green, blue


@dataclass(frozen=True)
class SemanticClass:
    """One class: its name, its colour and the raw ids that mean it."""

    name: Label
    color: Annotated[Color, read_color]
    ids: tuple[Annotated[int, whole_number(0, RAW_IDS - 1)], ...]


ClassSet = tuple[SemanticClass, ...]
"""Classes in the order of their train ids."""


def class_set_from(content: Content) -> ClassSet:
    """Read a class set from a list, the inverse of `class_set_to`.

    Raises:
        UserError: no list of classes, no class or more than 255 of them, or a name or a raw id given twice; the message
            names its place.
    """
    if not 1 <= len(content.entries()) <= IGNORE_INDEX:
        content.refuse(f"1 to {IGNORE_INDEX} classes")
    classes = tuple(read(entry, SemanticClass) for entry in content.entries())
    names: set[str] = set()
    owner: dict[int, str] = {}
    for item in classes:
        if item.name in names:
            raise UserError(f"{content.place()}: the name {item.name!r} stands twice; {content.remedy}")
        names.add(item.name)
        for raw_id in item.ids:
            if raw_id in owner:
                both = f"class {owner[raw_id]} and to class {item.name}"
                raise UserError(f"{content.place()}: raw id {raw_id} belongs to {both}; {content.remedy}")
            owner[raw_id] = item.name
    return classes


def color_table(class_sets: Mapping[str, ClassSet], origin: str) -> dict[Color, int]:
    """Return the raw id that each class's colour stands for in painted labels: the first of the class's ids.

    Raises:
        UserError: a class without ids, or a colour that stands for different raw ids, as for two classes of one set;
            the message starts with `origin`.
    """
    table: dict[Color, int] = {}
    owner: dict[Color, str] = {}
    for set_name, classes in class_sets.items():
        for item in classes:
            place = f"class {item.name} of {set_name}"
            if not item.ids:
                raise UserError(f"{origin}: {place} has no ids; painted labels need the one its color stands for")
            if table.setdefault(item.color, item.ids[0]) != item.ids[0]:
                raise UserError(
                    f"{origin}: color {list(item.color)} stands for raw id {table[item.color]} ({owner[item.color]}) "
                    f"and for {item.ids[0]} ({place}); give one another color, or ids that begin with the same one"
                )
            owner.setdefault(item.color, place)
    return table


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
