"""Class sets by the place that names them: a folder of shards, or a data set's description."""

from pathlib import Path

from esl_dist.config_files import read_yaml
from esl_dist.data.labels import ClassSet, class_names, class_set_from
from esl_dist.data.shard_index import read_index
from esl_dist.errors import UserError


def read_class_sets(place: Path) -> dict[str, ClassSet]:
    """Return the class sets, by name, of a folder of shards or of a YAML description (configs/datasets/).

    A description that gives raw ids as names of its data set (`id_names`) gives classes without raw ids here, for the
    data set need not be at hand.

    Raises:
        UserError: it is neither, or names no class set.
    """
    class_sets = read_index(place).class_sets if place.is_dir() else _described_class_sets(place)
    if not class_sets:
        raise UserError(f"{place}: names no class set; expected labelled shards, or a description with class_sets")
    return class_sets


def _described_class_sets(file: Path) -> dict[str, ClassSet]:
    content = read_yaml(file)
    entries_by_name = content.get("class_sets", {})
    if not isinstance(entries_by_name, dict):
        raise UserError(f"{file}: class_sets: expected name → list of classes, got {entries_by_name!r}")
    named = content.get("id_names") is not None
    return {
        str(name): class_set_from(_without_ids(entries) if named else entries, f"{file}: {name}")
        for name, entries in entries_by_name.items()
    }


def _without_ids(entries: object) -> object:
    if not isinstance(entries, list):
        return entries
    return [{**entry, "ids": []} if isinstance(entry, dict) else entry for entry in entries]


def same_classes(name: str, classes: ClassSet, class_sets: dict[str, ClassSet]) -> ClassSet | None:
    """Return the class set `name` of `class_sets` if its classes are those of `classes`, by name and order."""
    other = class_sets.get(name)
    return other if other is not None and class_names(other) == class_names(classes) else None
