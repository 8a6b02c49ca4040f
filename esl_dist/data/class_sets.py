"""What the ids and colours of labels mean: class sets as a description or a folder of shards names them."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from esl_dist.checked import Content, read_content
from esl_dist.config_files import read_yaml
from esl_dist.data.cache import Cache
from esl_dist.data.descriptions import Description, leads_out
from esl_dist.data.far_shards import open_far_shards
from esl_dist.data.labels import (
    IGNORE_INDEX,
    RAW_IDS,
    ClassSet,
    Color,
    class_names,
    class_set_from,
    color_table,
    read_color,
)
from esl_dist.data.shard_index import read_index
from esl_dist.errors import UserError
from esl_dist.recipes_by_name import description_file
from esl_dist.urls import is_url

Labels = tuple[dict[str, ClassSet], frozenset[int], dict[Color, int] | None]
"""What a split's labels mean: class sets by name, the raw ids that belong to no class, and the raw id that each colour
of painted labels stands for (None: labels hold ids)."""
NO_LABELS: Labels = ({}, frozenset(), None)
REMEDY = "correct the description (a class has name, color [r, g, b] and ids)"


def read_labels(description: Description, folder: Path, origin: Path) -> Labels:
    """Return what labels mean.

    Args:
        description: a description with labels.
        folder: the data set's folder, where the names of raw ids are, if they have names.
        origin: the description's file.

    Raises:
        UserError: classes, ids or colours that cannot be meant.
    """
    content = Content(vars(description), origin, REMEDY)
    ids = partial(_raw_ids, names=_id_names(description, folder, origin))
    class_sets = _class_sets(content, None if description.id_names is None else ids)
    ignored = frozenset(ids(content.at("ignore_ids")))
    if not description.label_colors:
        return class_sets, ignored, None
    colors = color_table(class_sets, str(origin))
    if not description.ignore_colors:
        return class_sets, ignored, colors
    place = f"{origin}: ignore_colors"
    ignored_colors = [read_color(color) for color in content.at("ignore_colors").entries()]
    for color in ignored_colors:
        if color in colors:
            raise UserError(f"{place}: {list(color)} is the color of a class; take it out of one")
    ignored = ignored or frozenset({IGNORE_INDEX})
    raw_id = min(ignored)
    if any(raw_id in item.ids for classes in class_sets.values() for item in classes):
        raise UserError(f"{place}: raw id {raw_id}, which they would get, is a class's; list another in ignore_ids")
    return class_sets, ignored, colors | dict.fromkeys(ignored_colors, raw_id)


def _id_names(description: Description, folder: Path, origin: Path) -> list[str] | None:
    """Return the names of the raw ids, in lower case and in the order of the ids, where the data set lists them."""
    if description.id_names is None:
        return None
    if leads_out(description.id_names):
        raise UserError(f"{origin}: {description.id_names!r} leads out of the data set's folder (id_names)")
    remedy = "expected a list `labels` whose entries have a name `readable`"
    labels = read_content(folder / description.id_names, remedy).at("labels")
    return [label.at("readable").text().lower() for label in labels.entries()]


def _raw_ids(content: Content, names: list[str] | None) -> list[int]:
    """Return what a description lists as raw ids as numbers: they are names if the data set names its ids."""
    if names is None:
        return [entry.whole_number(0, RAW_IDS - 1) for entry in content.entries()]
    for entry in content.entries():
        if entry.value not in names:
            near = ", ".join(difflib.get_close_matches(str(entry.value), names, 3))
            hint = f"near ones are {near}" if near else f"it has {len(names)} others"
            raise UserError(f"{entry.place()}: the data set has no label {entry.value!r}; {hint}")
    return [names.index(value) for value in content.value]


def _class_sets(content: Content, ids: Callable[[Content], list[int]] | None) -> dict[str, ClassSet]:
    """Read class sets; `ids` turns what a class has under `ids` into numbers, None: they are numbers."""

    def plain(entry: Content) -> Any:
        if not isinstance(entry.value, dict):
            return entry.value
        # In YAML `name: 1` needs no quotes.
        name = {"name": str(entry.value["name"])} if type(entry.value.get("name")) in (int, float) else {}
        return {**entry.value, **name, **({"ids": ids(entry.at("ids"))} if ids is not None else {})}

    return {
        str(name.value): class_set_from(replace(entries, value=[plain(entry) for entry in entries.entries()]))
        for name, entries in content.at("class_sets").pairs()
    }


def read_class_sets(place: str | Path, cache: Cache | None = None) -> dict[str, ClassSet]:
    """Return the class sets, by name, of a folder of shards here or far away, or of a YAML description.

    A description is a file, or the name of one that the package brings, such as `cityscapes`.

    A description that gives raw ids as names of its data set (`id_names`) gives classes without raw ids here, for the
    data set need not be at hand.

    Raises:
        UserError: it is neither, or names no class set.
    """
    if is_url(str(place)):
        if cache is None:
            raise ValueError(f"{place}: is far away, and no cache is given")
        class_sets = open_far_shards(str(place), cache)[1].class_sets
    elif Path(place).is_dir():
        class_sets = read_index(Path(place)).class_sets
    else:
        file = description_file(str(place))
        described = {"class_sets": {}, "id_names": None} | read_yaml(file)
        no_ids: Callable[[Content], list[int]] | None = None if described["id_names"] is None else lambda _: []
        class_sets = _class_sets(Content(described, file, REMEDY), no_ids)
    if not class_sets:
        raise UserError(f"{place}: names no class set; expected labelled shards, or a description with class_sets")
    return class_sets


def same_classes(name: str, classes: ClassSet, class_sets: dict[str, ClassSet]) -> ClassSet | None:
    """Return the class set `name` of `class_sets` if its classes are those of `classes`, by name and order."""
    other = class_sets.get(name)
    return other if other is not None and class_names(other) == class_names(classes) else None
