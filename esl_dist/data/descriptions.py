"""A data set's YAML description (configs/datasets/*.yaml): what it may say, and what its patterns take."""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from omegaconf import MISSING

from esl_dist.config_files import load_config
from esl_dist.config_values import one_of
from esl_dist.data.images import CHANNELS
from esl_dist.data.patterns import ANY_PICTURE, FilePattern, NamePattern
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_key, refuse_as_name

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
    """Its folder, relative to the working directory; esl-dist pack takes another."""
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


def read_description(file: Path, split: str) -> tuple[Description, list[FilePattern], list[NamePattern]]:
    """Read a description, a split's patterns of pictures and, where it has labels, of labels, and those of its names.

    There are none of names where the split has a list.

    Raises:
        UserError: a mistake in the description, an unknown split, a pattern of files that is not below the root, or
            that holds `{name}` not once, or other signs that stand for something, or one of names that is empty or
            leads out of the root.
    """
    description = load_config(Description, file)
    if split not in description.splits:
        known = ", ".join(description.splits)
        raise UserError(f"{file}: no split {split!r}; it names {known}")
    refuse_as_name(description.name, f"{file}: name")
    refuse_as_name(split, f"{file}: split")
    for one in description.splits.values():
        one.label = description.label if one.label == OF_THE_DESCRIPTION else one.label
    chosen = description.splits[split]
    if (chosen.list is None) == (not chosen.names):
        raise UserError(f"{file}: a split needs either names or list (splits.{split})")
    if bool(label_patterns(description)) != bool(description.class_sets):
        raise UserError(f"{file}: expected label and class_sets, or neither where pictures have no labels")
    if description.label_colors and description.label_channel is not None:
        raise UserError(f"{file}: label_colors and label_channel contradict each other; keep the one that holds")
    if description.ignore_colors and not description.label_colors:
        raise UserError(f"{file}: ignore_colors: expected with label_colors: true only")
    files = [
        _file_pattern(text.replace("{split}", split), f"{file}: pattern {text!r} of {key}")
        for key, text in (("image", description.image), ("label", chosen.label))
        if text is not None
    ]
    return description, files, [_name_pattern(text, f"{file}: splits.{split}.names") for text in chosen.names]


def label_patterns(description: Description) -> set[str]:
    """Return the texts of all patterns of labels, those of other splits too."""
    texts = (description.label, *(split.label for split in description.splits.values()))
    return {text for text in texts if text is not None}


def _file_pattern(text: str, place: str) -> FilePattern:
    if text.count("{name}") != 1 or leads_out(text):
        raise UserError(f"{place}: expected a path below the root with {{name}} once")
    plain = text.replace("{name}", "")
    if (sign := re.search(r"[*?]|{\w*}", plain.removesuffix(ANY_PICTURE))) is not None:
        raise UserError(
            f"{place}: {sign[0]} has no meaning here; expected {{name}}, {{split}} and, at the end, .*; "
            f"folders that differ are part of a name (names: ['*/*'])"
        )
    pattern = FilePattern.cut(text)
    refuse_as_key(pattern.file_of("name"), f"{place}:")
    return pattern


def _name_pattern(text: str, place: str) -> NamePattern:
    if leads_out(text):
        raise UserError(f"{place}: {text!r} leads out of the data set's folder")
    pattern = NamePattern.cut(text)
    if not pattern.parts:
        raise UserError(f"{place}: an empty pattern; expected such as '*'")
    return pattern


def leads_out(path: str) -> bool:
    """Say whether a path is none below the folder that it is meant to be relative to."""
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
