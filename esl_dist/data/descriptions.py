"""A data set's YAML description (configs/datasets/*.yaml): what it may say, and what its patterns and ids mean."""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, NamedTuple

from omegaconf import MISSING

from esl_dist.config_files import load_config
from esl_dist.config_values import one_of
from esl_dist.data.images import CHANNELS
from esl_dist.data.labels import IGNORE_INDEX, RAW_IDS, ClassSet, Color, class_set_from, color_from, color_table
from esl_dist.data.patterns import ANY_PICTURE, FilePattern, NamePattern
from esl_dist.errors import UserError
from esl_dist.files import read_json, refuse_as_key, refuse_as_name

OF_THE_DESCRIPTION = "{label}"
"""Stands for the description's own pattern of labels."""


@dataclass
class Split:
    """Which samples a split has."""

    EXPECTED: ClassVar = "{names: ['*']} or {list: names.txt}"

    names: list[str] = field(default_factory=list)
    """Patterns of sample names, as in a shell: `*`, `?`, `[abc]`; `**` for sub-folders of any depth."""
    list: str | None = None
    """File with one sample a line, relative to the description."""
    label: str | None = OF_THE_DESCRIPTION
    """Pattern of the split's labels; null: it has none; `{label}`: that of the description."""


@dataclass
class Description:
    """A data set: where its files are, which splits it has, and what its labels mean."""

    name: str = MISSING
    """Name of the data set."""
    root: str = MISSING
    """Its folder, relative to the working directory; shards/prepare.py takes another."""
    image: str = MISSING
    """Pattern of pictures, relative to the root."""
    label: str | None = None
    """Pattern of labels, relative to the root; null: the pictures have none."""
    splits: dict[str, Split] = MISSING
    """Splits: name → names or list, and label."""
    class_sets: dict[str, Any] = field(default_factory=dict)
    """Name → classes with name, color [r, g, b], raw ids; none without labels."""
    ignore_ids: list[Any] = field(default_factory=list)
    """Raw ids that belong to no class."""
    id_names: str | None = None
    """JSON file below the root whose `labels` name the raw ids (`readable`), in their order; class_sets and ignore_ids
    then hold names in lower case. null: they hold ids."""
    label_channel: Annotated[str, one_of(*CHANNELS)] | None = None
    """Channel of colour labels that holds the raw id; null: labels of one channel."""
    label_colors: bool = False
    """Whether labels are painted in the classes' colours; a colour stands for the first raw id of its class."""
    ignore_colors: list[Any] = field(default_factory=list)
    """Colours [r, g, b] of painted labels that belong to no class; they stand for the smallest of ignore_ids, or for
    `labels.IGNORE_INDEX` if there is none."""
    exif_orientation: Annotated[str, one_of("apply", "ignore")] | None = None
    """What is done with pictures whose EXIF tag says that they are to be turned: `apply` turns them, `ignore` packs
    them as they are stored; null: they are refused."""
    keep_aspect_ratio: bool = False
    """Whether pictures are resized to fit and padded (right and bottom) where a size is asked for."""
    skip_other_sizes: bool = False
    """Whether pictures whose label has another size are left out, with a warning, instead of refused."""


def read_description(file: Path, split: str) -> Description:
    """Read a description and make sure that it has a split, and labels where it has classes.

    Raises:
        UserError: a mistake in the description, or an unknown split.
    """
    description = load_config(Description, file)
    if split not in description.splits:
        known = ", ".join(description.splits)
        raise UserError(f"{file}: no split {split!r}; it names {known}")
    refuse_as_name(description.name, f"{file}: name")
    refuse_as_name(split, f"{file}: split")
    any_labels = any(label_of(description, name) is not None for name in description.splits)
    if (description.label is not None or any_labels) != bool(description.class_sets):
        raise UserError(f"{file}: expected label and class_sets, or neither where pictures have no labels")
    if description.label_colors and description.label_channel is not None:
        raise UserError(f"{file}: label_colors and label_channel contradict each other; keep the one that holds")
    if description.ignore_colors and not description.label_colors:
        raise UserError(f"{file}: ignore_colors: expected with label_colors: true only")
    return description


def label_of(description: Description, split: str) -> str | None:
    """Return the text of a split's pattern of labels; None: it has no labels."""
    own = description.splits[split].label
    return description.label if own == OF_THE_DESCRIPTION else own


def file_pattern(text: str, split: str, key: str, origin: Path) -> FilePattern:
    """Read a pattern of files for a split.

    Args:
        text: the pattern as the description has it.
        split: the split's name.
        key: where it stands, `image` or `label`.
        origin: the description's file.

    Raises:
        UserError: a path that is not below the root, or that holds `{name}` not once, or other signs that stand for
            something.
    """
    place = f"{origin}: pattern {text!r} of {key}"
    filled = text.replace("{split}", split)
    if filled.count("{name}") != 1 or PurePosixPath(filled).is_absolute() or ".." in PurePosixPath(filled).parts:
        raise UserError(f"{place}: expected a path below the root with {{name}} once")
    plain = filled.replace("{name}", "")
    if (sign := re.search(r"[*?]|{\w*}", plain.removesuffix(ANY_PICTURE))) is not None:
        raise UserError(
            f"{place}: {sign[0]} stands for nothing here; expected {{name}}, {{split}} and, at the end, .*; "
            f"folders that differ are part of a name (names: ['*/*'])"
        )
    pattern = FilePattern.cut(filled)
    refuse_as_key(pattern.file_of("name"), f"{place}:")
    return pattern


def name_patterns(description: Description, split: str, origin: Path) -> list[NamePattern]:
    """Read the patterns of a split's names.

    Raises:
        UserError: one is empty, absolute or leads out of the root.
    """
    key = f"splits.{split}.names"
    texts = description.splits[split].names
    for text in texts:
        _refuse_outside(text, key, origin)
    patterns = [NamePattern.cut(text) for text in texts]
    if not all(pattern.parts for pattern in patterns):
        raise UserError(f"{origin}: {key}: an empty pattern; expected such as '*'")
    return patterns


class Elsewhere(NamedTuple):
    """What other parts of a description take: the labels of all splits, and other splits' names in the same folder."""

    labels: list[FilePattern]
    names: list[NamePattern]


def patterns_elsewhere(description: Description, split: str) -> Elsewhere:
    """Return what a split's pattern of pictures may meet that is no picture of the split."""
    texts = [description.label, *(label_of(description, name) for name in description.splits)]
    filled = {text.replace("{split}", split) for text in texts if text is not None}
    labels = [FilePattern.cut(text) for text in filled if text.count("{name}") == 1]
    others = description.splits.values() if "{split}" not in description.image else []
    return Elsewhere(labels, [NamePattern.cut(text) for other in others for text in other.names])


class Labels(NamedTuple):
    """What a split's labels mean; see the attributes of `layouts.Layout`."""

    class_sets: dict[str, ClassSet]
    ignore_ids: frozenset[int]
    raw_ids_of_colors: dict[Color, int]


NO_LABELS = Labels({}, frozenset(), {})


def read_labels(description: Description, folder: Path, origin: Path) -> Labels:
    """Return what labels mean.

    Args:
        description: a description with labels.
        folder: the data set's folder, where the names of raw ids are, if they have names.
        origin: the description's file.

    Raises:
        UserError: classes, ids or colours that cannot be meant.
    """
    ids = _RawIds(origin, _id_names(description, folder, origin))
    class_sets = {
        name: class_set_from(_with_text_names(ids.of_classes(entries)), f"{origin}: class set {name}")
        for name, entries in description.class_sets.items()
    }
    ignored = frozenset(ids.of(list(description.ignore_ids)))
    if not description.label_colors:
        return Labels(class_sets, ignored, {})
    table = color_table(class_sets, str(origin))
    if not description.ignore_colors:
        return Labels(class_sets, ignored, table)
    ignored = ignored or frozenset({IGNORE_INDEX})
    place = f"{origin}: ignore_colors"
    if any(type(value) is int for value in description.ignore_colors):
        raise UserError(f"{place}: expected a list of colors, such as [[0, 0, 0]], got {description.ignore_colors}")
    colors = [color_from(values, f"{place}:") for values in description.ignore_colors]
    for color in colors:
        if color in table:
            raise UserError(f"{place}: {list(color)} is the color of a class; take it out of one")
    table |= dict.fromkeys(colors, min(ignored))
    of_classes = {raw_id for classes in class_sets.values() for item in classes for raw_id in item.ids}
    if min(ignored) in of_classes:
        raise UserError(
            f"{place}: raw id {min(ignored)}, which they would get, is a class's; list another in ignore_ids"
        )
    return Labels(class_sets, ignored, table)


def _with_text_names(entries: Any) -> Any:
    """Return entries of classes in which a number as a class's name is text: in YAML `name: 1` needs no quotes."""
    if not isinstance(entries, list):
        return entries
    return [
        {**entry, "name": str(entry["name"])}
        if isinstance(entry, dict) and type(entry.get("name")) in (int, float)
        else entry
        for entry in entries
    ]


def _refuse_outside(path: str, key: str, origin: Path) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError(f"{origin}: {path!r} leads out of the data set's folder ({key})")


def _id_names(description: Description, folder: Path, origin: Path) -> list[str] | None:
    """Return the names of the raw ids, in lower case and in the order of the ids, where the data set lists them."""
    if description.id_names is None:
        return None
    _refuse_outside(description.id_names, "id_names", origin)
    file = folder / description.id_names
    content = read_json(file)
    try:
        return [str(label["readable"]).lower() for label in content["labels"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: expected a list `labels` whose entries have a name `readable`") from error


@dataclass(frozen=True)
class _RawIds:
    """Turns what a description lists as raw ids into numbers: they may be names, if the data set names its ids."""

    origin: Path
    names: list[str] | None

    def of(self, values: Any) -> list[int]:
        if not isinstance(values, list):
            raise UserError(f"{self.origin}: expected a list of the data set's names of labels, got {values!r}")
        return [self._number(value) for value in values]

    def of_classes(self, entries: Any) -> Any:
        if self.names is None or not isinstance(entries, list):
            return entries
        return [
            {**entry, "ids": self.of(entry["ids"])} if isinstance(entry, dict) and "ids" in entry else entry
            for entry in entries
        ]

    def _number(self, value: Any) -> int:
        if self.names is not None:
            if value not in self.names:
                near = difflib.get_close_matches(str(value), self.names, 3)
                hint = f"; near ones are {', '.join(near)}" if near else f"; it has {len(self.names)} others"
                raise UserError(f"{self.origin}: the data set has no label {value!r}{hint}")
            return self.names.index(value)
        if type(value) is not int or not 0 <= value < RAW_IDS:
            raise UserError(f"{self.origin}: ignore_ids: {value!r} is not a raw id, a whole number below {RAW_IDS}")
        return value
