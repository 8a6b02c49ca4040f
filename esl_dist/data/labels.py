"""Classes: names, colours, and the map from a data set's raw ids to train ids.

A train id is a class's position in its class set; the network's channel c scores train id c. Raw ids stay in files and
shards, the map is applied when a label is read, so one packed data set serves every class set its description names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esl_dist.errors import UserError
from esl_dist.files import refuse_as_label, shortened

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


@dataclass(frozen=True)
class SemanticClass:
    """One class: its name, its colour and the raw ids that mean it."""

    name: str
    color: Color
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
    if not 1 <= len(entries) <= IGNORE_INDEX:
        raise UserError(f"{origin}: {len(entries)} classes; expected 1 to {IGNORE_INDEX}")
    classes: dict[str, SemanticClass] = {}
    owner: dict[int, str] = {}
    for position, entry in enumerate(entries):
        place = f"{origin}: class {position}"
        if not _is_class(entry):
            raise UserError(f"{place}: expected name, color [r, g, b] and ids, got {shortened(entry)}")
        name = entry["name"]
        if not isinstance(name, str):
            raise UserError(f"{place}: name {shortened(name)} is not text; write it in quotation marks")
        refuse_as_label(name, f"{place}: name")
        color = color_from(entry["color"], f"{origin}: class {name}: color")
        for raw_id in entry["ids"]:
            if not 0 <= raw_id < RAW_IDS:
                raise UserError(f"{origin}: class {name}: raw id {raw_id} is not in [0, {RAW_IDS - 1}]")
            if raw_id in owner:
                raise UserError(f"{origin}: raw id {raw_id} belongs to class {owner[raw_id]} and to class {name}")
            owner[raw_id] = name
        if name in classes:
            raise UserError(f"{origin}: two classes have the name {name}")
        classes[name] = SemanticClass(name, color, tuple(entry["ids"]))
    return tuple(classes.values())


def _is_class(entry: Any) -> bool:
    return isinstance(entry, dict) and "name" in entry and all(_are_whole(entry.get(key)) for key in ("color", "ids"))


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def color_from(values: Any, origin: str) -> Color:
    """Read a colour from a list.

    Raises:
        UserError: it is not three whole numbers from 0 to 255; the message starts with `origin`.
    """
    if not _are_whole(values) or len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise UserError(f"{origin} {values} is not [r, g, b] with values from 0 to 255")
    return values[0], values[1], values[2]


def color_table(class_sets: Mapping[str, ClassSet], origin: str) -> dict[Color, int]:
    """Return the raw id that each class's colour stands for in painted labels: the first of the class's ids.

    Raises:
        UserError: a class without ids, two classes of one set with one colour, or class sets in which a colour stands
            for different raw ids; the message starts with `origin`.
    """
    table: dict[Color, int] = {}
    owner: dict[Color, str] = {}
    for set_name, classes in class_sets.items():
        if len({item.color for item in classes}) != len(classes):
            raise UserError(f"{origin}: class set {set_name}: {_sharing_a_color(classes)}; painted labels need another")
        for item in classes:
            place = f"class {item.name} of {set_name}"
            if not item.ids:
                raise UserError(f"{origin}: {place} has no ids; painted labels need the one its color stands for")
            if table.setdefault(item.color, item.ids[0]) != item.ids[0]:
                raise UserError(
                    f"{origin}: color {list(item.color)} stands for raw id {table[item.color]} ({owner[item.color]}) "
                    f"and for {item.ids[0]} ({place}); let the ids of one begin with that of the other"
                )
            owner.setdefault(item.color, place)
    return table


def _sharing_a_color(classes: ClassSet) -> str:
    names: dict[Color, list[str]] = {}
    for item in classes:
        names.setdefault(item.color, []).append(item.name)
    return "; ".join(f"{' and '.join(of)} have the color {list(color)}" for color, of in names.items() if len(of) > 1)


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
