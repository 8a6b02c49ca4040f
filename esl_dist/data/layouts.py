"""A data set's folders → pairs of picture and label files, as its YAML description says.

A description (configs/datasets/*.yaml) names the folder, a pattern for pictures and one for labels, the splits, and
the class sets. In the patterns `{split}` stands for the split's name and `{name}` for a sample's name, which may
hold folders (`frankfurt/frankfurt_000000_000294`).
"""

import fnmatch
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esl_dist.config import setting
from esl_dist.config_files import load_config
from esl_dist.data.labels import ClassSet, class_set_from
from esl_dist.errors import UserError


@dataclass
class _Split:
    names: list[str] = setting(list, "Patterns of sample names, as in a shell: `*`, `?`, `[abc]`.")
    list: str | None = setting(None, "File with one sample name a line, relative to the description.")


@dataclass
class _Description:
    name: str = setting("???", "Name of the data set.")
    root: str = setting("???", "Its folder, relative to the working directory; shards/prepare.py takes another.")
    image: str = setting("???", "Pattern of pictures, relative to the root.")
    label: str = setting("???", "Pattern of labels, relative to the root.")
    splits: dict[str, _Split] = setting("???", "Splits: name → names or list.")
    class_sets: dict[str, Any] = setting("???", "Name → classes with name, color [r, g, b], raw ids.")
    ignore_ids: list[int] = setting(list, "Raw ids that belong to no class.", minimum=0, maximum=65535)


@dataclass(frozen=True)
class Pair:
    """One sample's name and its two files."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Layout:
    """One split of a data set: pairs sorted by name, class sets and the raw ids that belong to no class."""

    dataset: str
    split: str
    pairs: tuple[Pair, ...]
    class_sets: dict[str, ClassSet]
    ignore_ids: frozenset[int]

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
            pictures without labels (the first few are named).
    """
    description = load_config(_Description, description_file)
    if split not in description.splits:
        known = ", ".join(description.splits)
        raise UserError(f"{description_file}: no split {split!r}; it names {known}")
    folder = root if root is not None else Path(description.root)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (the data set {description.name}); give its place as root=…")
    image_pattern = _pattern(description.image, split, description_file)
    label_pattern = _pattern(description.label, split, description_file)
    names = _names(description.splits[split], folder, image_pattern, description_file)
    if not names:
        raise UserError(f"{folder}: split {split} of {description.name} has no pictures ({image_pattern})")
    pairs = tuple(
        Pair(name, folder / image_pattern.replace("{name}", name), folder / label_pattern.replace("{name}", name))
        for name in names
    )
    _refuse_missing(pairs)
    if not description.class_sets:
        raise UserError(f"{description_file}: class_sets is empty; expected at least one")
    class_sets = {
        name: class_set_from(entries, f"{description_file}: class set {name}")
        for name, entries in description.class_sets.items()
    }
    return Layout(description.name, split, pairs, class_sets, frozenset(description.ignore_ids))


def _pattern(pattern: str, split: str, origin: Path) -> str:
    filled = pattern.replace("{split}", split)
    if filled.count("{name}") != 1 or Path(filled).is_absolute() or ".." in Path(filled).parts:
        raise UserError(f"{origin}: pattern {pattern!r}: expected a path below the root with {{name}} once")
    return filled


def _names(split: _Split, folder: Path, image_pattern: str, origin: Path) -> list[str]:
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
    before, after = image_pattern.split("{name}")
    _refuse_outside(split.names, origin)
    found: set[str] = set()
    for pattern in split.names:
        for path in glob.glob(glob.escape(before) + pattern + glob.escape(after), root_dir=folder):
            name = path[len(before) : len(path) - len(after)]
            if fnmatch.fnmatchcase(name, pattern):
                found.add(name)
    return sorted(found)


def _refuse_outside(names: list[str], origin: Path) -> None:
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{origin}: {name!r} leads out of the data set's folder")


def _refuse_missing(pairs: tuple[Pair, ...]) -> None:
    missing = [str(path) for pair in pairs for path in (pair.image, pair.label) if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise UserError(f"{len(missing)} files of the split do not exist: {shown}")
