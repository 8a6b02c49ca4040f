"""A data set's folders → pairs of picture and label files, as its YAML description says.

A description (configs/datasets/*.yaml) names the folder, a pattern for pictures and one for labels, the splits, and
the class sets. In the patterns `{split}` stands for the split's name and `{name}` for a sample's name, which may
hold folders (`frankfurt/frankfurt_000000_000294`); a pattern may end in `.*`, any of the usual extensions of pictures.
"""

import difflib
import fnmatch
import glob
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esl_dist.config import setting
from esl_dist.config_files import load_config
from esl_dist.data.images import CHANNELS
from esl_dist.data.labels import RAW_IDS, ClassSet, class_set_from
from esl_dist.errors import UserError
from esl_dist.files import read_json, refuse_as_name

EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")


@dataclass
class _Split:
    names: list[str] = setting(list, "Patterns of sample names, as in a shell: `*`, `?`, `[abc]`.")
    list: str | None = setting(None, "File with one sample name a line, relative to the description.")


@dataclass
class _Description:
    name: str = setting("???", "Name of the data set.")
    root: str = setting("???", "Its folder, relative to the working directory; shards/prepare.py takes another.")
    image: str = setting("???", "Pattern of pictures, relative to the root.")
    label: str | None = setting(None, "Pattern of labels, relative to the root; null: the pictures have none.")
    splits: dict[str, _Split] = setting("???", "Splits: name → names or list.")
    class_sets: dict[str, Any] = setting(
        dict, "Name → classes with name, color [r, g, b], raw ids; none without labels."
    )
    ignore_ids: list[Any] = setting(list, "Raw ids that belong to no class.")
    id_names: str | None = setting(
        None,
        "JSON file below the root whose `labels` name the raw ids (`readable`), in their order; class_sets and "
        "ignore_ids then hold names in lower case. null: they hold ids.",
    )
    label_channel: str | None = setting(
        None, "Channel of colour labels that holds the raw id; null: labels of one channel.", choices=tuple(CHANNELS)
    )
    keep_aspect_ratio: bool = setting(
        False, "Whether pictures are resized to fit and padded (right and bottom) where a size is asked for."
    )
    skip_other_sizes: bool = setting(
        False, "Whether pictures whose label has another size are left out, with a warning, instead of refused."
    )


@dataclass(frozen=True)
class Pair:
    """One sample's name and its two files; `label` is None where the data set has no labels."""

    name: str
    image: Path
    label: Path | None

    def files(self) -> list[Path]:
        """Return the files there should be."""
        return [self.image] if self.label is None else [self.image, self.label]


@dataclass(frozen=True)
class Layout:
    """One split of a data set.

    Attributes:
        dataset: the data set's name.
        split: the split's name.
        pairs: sorted by name.
        class_sets: name → classes.
        ignore_ids: the raw ids that belong to no class.
        label_channel: the channel of colour labels that holds the raw id; None: labels of one channel.
        keep_aspect_ratio: whether pictures are fitted and padded, not stretched.
        skip_other_sizes: whether a pair whose sizes differ is left out, not refused.
        label_colors: whether labels are painted in the colours of `raw_ids_of_colors`.
        exif_orientation: what becomes of an orientation tag: `apply`, `ignore`; None: a picture that is turned by one
            is refused.
        raw_ids_of_colors: the raw id that each colour of painted labels stands for; empty where they are not painted.
    """

    dataset: str
    split: str
    pairs: tuple[Pair, ...]
    class_sets: dict[str, ClassSet]
    ignore_ids: frozenset[int]
    label_channel: str | None = None
    keep_aspect_ratio: bool = False
    skip_other_sizes: bool = False
    label_colors: bool = False
    exif_orientation: str | None = None
    raw_ids_of_colors: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def known_ids(self) -> frozenset[int]:
        """Return the raw ids that the description accounts for."""
        return self.ignore_ids.union(*(item.ids for classes in self.class_sets.values() for item in classes))


def read_layout(description_file: Path, split: str, root: Path | None = None) -> Layout:
    """Find the pairs of a split.

    Args:
        description_file: the data set's YAML description.
        split: a split it names.
        root: the data set's folder, if not the one it names.

    Raises:
        UserError: a mistake in the description, an unknown split, a missing folder, a split without pictures, or
            pictures without labels or labels without pictures (the first few are named).
    """
    description = load_config(_Description, description_file)
    if split not in description.splits:
        known = ", ".join(description.splits)
        raise UserError(f"{description_file}: no split {split!r}; it names {known}")
    refuse_as_name(description.name, f"{description_file}: name")
    refuse_as_name(split, f"{description_file}: split")
    folder = root if root is not None else Path(description.root)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (the data set {description.name}); give its place as root=…")
    image_pattern = _pattern(description.image, split, description_file)
    label_pattern = None if description.label is None else _pattern(description.label, split, description_file)
    patterns = [pattern for pattern in (image_pattern, label_pattern) if pattern is not None]
    names = _names(description.splits[split], folder, patterns, description_file)
    if not names:
        raise UserError(f"{folder}: split {split} of {description.name} has no pictures ({image_pattern})")
    pairs = tuple(_pair(folder, image_pattern, label_pattern, name) for name in names)
    _refuse_missing(pairs)
    if (label_pattern is None) != (not description.class_sets):
        raise UserError(f"{description_file}: expected label and class_sets, or neither where pictures have no labels")
    ids = _RawIds(description_file, _id_names(description, folder, description_file))
    return Layout(
        dataset=description.name,
        split=split,
        pairs=pairs,
        class_sets={
            name: class_set_from(ids.of_classes(entries), f"{description_file}: class set {name}")
            for name, entries in description.class_sets.items()
        },
        ignore_ids=frozenset(ids.of(list(description.ignore_ids))),
        label_channel=description.label_channel,
        keep_aspect_ratio=description.keep_aspect_ratio,
        skip_other_sizes=description.skip_other_sizes,
    )


def _pair(folder: Path, image_pattern: str, label_pattern: str | None, name: str) -> Pair:
    label = None if label_pattern is None else _file(folder, label_pattern, name)
    return Pair(name, _file(folder, image_pattern, name), label)


def _id_names(description: _Description, folder: Path, origin: Path) -> list[str] | None:
    """Return the names of the raw ids, in lower case and in the order of the ids, where the data set lists them."""
    if description.id_names is None:
        return None
    _refuse_outside([description.id_names], origin)
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


def _pattern(pattern: str, split: str, origin: Path) -> str:
    filled = pattern.replace("{split}", split)
    if filled.count("{name}") != 1 or Path(filled).is_absolute() or ".." in Path(filled).parts:
        raise UserError(f"{origin}: pattern {pattern!r}: expected a path below the root with {{name}} once")
    return filled


def _names(split: _Split, folder: Path, file_patterns: list[str], origin: Path) -> list[str]:
    """Return the names of the split's samples, also of those with a label and no picture: they are to be reported."""
    if (split.list is None) == (not split.names):
        raise UserError(f"{origin}: a split needs either names or list")
    if split.list is not None:
        file = origin.parent / split.list
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{origin}: the split's list {file} cannot be read ({error})") from error
        # As a path, so that "a//b" and "./a/b" are the sample "a/b".
        names = [Path(line.strip()).as_posix() for line in lines if line.strip()]
        _refuse_outside(names, file)
        if len(set(names)) != len(names):
            raise UserError(f"{file}: names a sample twice")
        return sorted(names)
    _refuse_outside(split.names, origin)
    found: set[str] = set()
    for filled in itertools.chain(*map(_with_extensions, file_patterns)):
        before, after = filled.split("{name}")
        for pattern in split.names:
            for path in glob.glob(glob.escape(before) + pattern + glob.escape(after), root_dir=folder):
                name = path[len(before) : len(path) - len(after)]
                if fnmatch.fnmatchcase(name, pattern):
                    found.add(name)
    return sorted(found)


def _with_extensions(pattern: str) -> list[str]:
    return [pattern[:-2] + extension for extension in EXTENSIONS] if pattern.endswith(".*") else [pattern]


def _file(folder: Path, pattern: str, name: str) -> Path:
    """Return a sample's file: the one there is of the extensions it may have, or the first if there is none."""
    files = [folder / filled.replace("{name}", name) for filled in _with_extensions(pattern)]
    there = [file for file in files if file.is_file()] if len(files) > 1 else files
    if len(there) > 1:
        raise UserError(f"two files of one sample: {', '.join(map(str, there))}; remove one")
    return (there or files)[0]


def _refuse_outside(names: list[str], origin: Path) -> None:
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{origin}: {name!r} leads out of the data set's folder")


def _refuse_missing(pairs: tuple[Pair, ...]) -> None:
    missing = [str(path) for pair in pairs for path in pair.files() if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise UserError(f"{len(missing)} files of the split do not exist: {shown}; a sample is a picture and its label")
