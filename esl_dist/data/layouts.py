"""A data set's folders → pairs of picture and label files, as its YAML description says.

A description (`descriptions`) names the folder, a pattern for pictures and one for labels, the splits, and the class
sets. In the patterns `{split}` stands for the split's name and `{name}` for a sample's name, which may hold folders
(`frankfurt/frankfurt_000000_000294`). What lies in the folders is a sample, or is refused or told by name: pictures
that no pattern takes are easily thought to be packed.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from esl_dist.data.descriptions import (
    NO_LABELS,
    Description,
    Split,
    file_pattern,
    label_of,
    name_patterns,
    patterns_elsewhere,
    read_description,
    read_labels,
)
from esl_dist.data.labels import ClassSet, Color
from esl_dist.data.passed_over import other_pictures, passed_over, why_nothing
from esl_dist.data.patterns import FilePattern, NamePattern, takes
from esl_dist.data.source_files import FILE, Entry, Scan, files_by_name, first_few, refuse_unreadable, scan
from esl_dist.data.split_lists import ListReading, beginnings, read_list
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_key


@dataclass(frozen=True)
class Pair:
    """One sample's name (Unicode form NFC) and its two files; `label` is None where the split has no labels."""

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
        class_sets: name → classes; none where the split has no labels.
        ignore_ids: the raw ids that belong to no class.
        label_channel: the channel of colour labels that holds the raw id; None: labels of one channel.
        keep_aspect_ratio: whether pictures are fitted and padded, not stretched.
        skip_other_sizes: whether a pair whose sizes differ is left out, not refused.
        label_colors: whether labels are painted in the colours of `raw_ids_of_colors`.
        exif_orientation: `apply` or `ignore`, for pictures whose EXIF tag asks to turn them; None: they are refused.
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
    raw_ids_of_colors: dict[Color, int] = field(default_factory=dict)

    def known_ids(self) -> frozenset[int]:
        """Return the raw ids that the description accounts for."""
        return self.ignore_ids.union(*(item.ids for classes in self.class_sets.values() for item in classes))


class _Sources(NamedTuple):
    """A split's patterns of files, what lies in their folders, and the files of each pattern by name."""

    root: Path
    image: FilePattern
    label: FilePattern | None
    scans: dict[str, Scan]
    files: dict[FilePattern, dict[str, list[Entry]]]

    def patterns(self) -> list[FilePattern]:
        return [self.image] if self.label is None else [self.image, self.label]


def read_layout(description_file: Path, split: str, root: Path | None = None) -> Layout:
    """Find the pairs of a split; pictures that its patterns pass over are told by a warning.

    Args:
        description_file: the data set's YAML description.
        split: a split it names.
        root: the data set's folder, if not the one it names.

    Raises:
        UserError: a mistake in the description or a list, an unknown split, a missing folder or one that may not be
            listed, a split without pictures, a name that is not UTF-8, two files of one sample, or pictures without
            labels or labels without pictures (the first few are named).
    """
    description = read_description(description_file, split)
    folder = Path(description.root) if root is None else root
    _refuse_no_folder(folder, description.name)
    sources = _sources(description, split, folder, description_file)
    labels = read_labels(description, folder, description_file) if sources.label is not None else NO_LABELS
    chosen = description.splits[split]
    if (chosen.list is None) == (not chosen.names):
        raise UserError(f"{description_file}: a split needs either names or list (splits.{split})")
    if chosen.list is not None:
        places = _listed(description_file, chosen.list, sources)
    else:
        places = _matching(description, split, sources, description_file)
    return Layout(
        dataset=description.name,
        split=split,
        pairs=_pairs(sources, places),
        class_sets=labels.class_sets,
        ignore_ids=labels.ignore_ids,
        label_channel=description.label_channel,
        keep_aspect_ratio=description.keep_aspect_ratio,
        skip_other_sizes=description.skip_other_sizes,
        label_colors=description.label_colors,
        exif_orientation=description.exif_orientation,
        raw_ids_of_colors=labels.raw_ids_of_colors,
    )


def _refuse_no_folder(folder: Path, dataset: str) -> None:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder (the data set {dataset}); looked for {folder.absolute()}, for root is relative "
            f"to the working directory (a split's list to the description); give its place as root=…"
        )


def _sources(description: Description, split: str, root: Path, origin: Path) -> _Sources:
    image = file_pattern(description.image, split, "image", origin)
    text = label_of(description, split)
    label = None if text is None else file_pattern(text, split, "label", origin)
    patterns = [image] if label is None else [image, label]
    depth = _depth(description.splits[split]) + max(pattern.after.count("/") for pattern in patterns)
    scans = {folder: scan(root, folder, depth) for folder in {pattern.folder for pattern in patterns}}
    files = {pattern: files_by_name(scans[pattern.folder].entries, pattern) for pattern in patterns}
    return _Sources(root, image, label, scans, files)


def _depth(split: Split) -> float:
    """Return how many sub-folders deep a split's samples may lie."""
    patterns = [NamePattern.cut(text) for text in split.names]
    return max((pattern.depth() for pattern in patterns), default=math.inf) if split.list is None else math.inf


def _listed(origin: Path, list_file: str, sources: _Sources) -> dict[str, str]:
    """Return the names of a list, each with its line as messages name it."""
    file = origin.parent / list_file
    known = set().union(*sources.files.values())
    try:
        lines = read_list(file, ListReading(beginnings(sources.root), sources.image, sources.label, known))
    except (OSError, ValueError) as error:
        raise UserError(f"{origin}: the split's list {file} cannot be read ({error})") from error
    _refuse_unlisted_folders(sources, max(name.count("/") for name in lines))
    return {name: f"line {line} of {file}" for name, line in sorted(lines.items())}


def _matching(description: Description, split: str, sources: _Sources, origin: Path) -> dict[str, str]:
    """Return the names that the split's patterns take, also of labels without pictures: they are to be reported."""
    patterns = name_patterns(description, split, origin)
    _refuse_unlisted_folders(sources, max(pattern.depth() for pattern in patterns))
    names = {name for files in sources.patterns() for name in sources.files[files] if takes(patterns, files, name)}
    entries = sources.scans[sources.image.folder].entries
    others = passed_over(entries, sources.image, patterns, patterns_elsewhere(description, split))
    if not names:
        raise UserError(
            f"{sources.root}: split {split} of {description.name} has no pictures ({sources.image})"
            + "".join(f"; {text}" for text in [*why_nothing(sources.root, sources.image, patterns), *others])
        )
    for text in others:
        print(f"warning: {sources.root}: split {split} of {description.name}: {text}", file=sys.stderr, flush=True)
    return dict.fromkeys(sorted(names), "")


def _refuse_unlisted_folders(sources: _Sources, depth: float) -> None:
    inside = max(pattern.after.count("/") for pattern in sources.patterns())
    refuse_unreadable(sources.scans.values(), depth + inside)


def _pairs(sources: _Sources, places: Mapping[str, str]) -> tuple[Pair, ...]:
    """Return the pairs of names.

    Args:
        sources: what there is.
        places: sorted names, each with its place in a list as a message names it.
    """
    for name in places:
        refuse_as_key(name, f"{sources.root / sources.image.folder}: sample")
    chosen = {
        pattern: {name: sources.files[pattern].get(name, []) for name in places} for pattern in sources.patterns()
    }
    for entries in (entries for files in chosen.values() for entries in files.values() if len(entries) > 1):
        raise UserError(f"two files of one sample: {', '.join(sorted(one.path for one in entries))}; remove one")
    _refuse_missing(sources, chosen, places)
    found = [entries[0] for files in chosen.values() for entries in files.values()]
    if broken := [f"{entry.path}: {entry.kind}" for entry in found if entry.kind != FILE]:
        raise UserError(f"{len(broken)} of the split's files are none: {first_few(broken)}; remove or replace them")
    files = {
        pattern: [Path(entries[0].path) for entries in of_pattern.values()] for pattern, of_pattern in chosen.items()
    }
    labels = [None] * len(places) if sources.label is None else files[sources.label]
    return tuple(Pair(*each) for each in zip(places, files[sources.image], labels, strict=True))


def _refuse_missing(
    sources: _Sources, chosen: Mapping[FilePattern, Mapping[str, list[Entry]]], places: Mapping[str, str]
) -> None:
    missing = [(name, pattern) for name in places for pattern in chosen if not chosen[pattern][name]]
    if not missing:
        return
    others = {pattern: other_pictures(sources.scans[pattern.folder].entries, pattern) for pattern in chosen}
    shown = [
        f"{sources.root / pattern.first_file_of(name)}"
        + (f" (there is {others[pattern][name]})" if name in others[pattern] else "")
        for name, pattern in missing
    ]
    lines = first_few(list(dict.fromkeys(places[name] for name, _ in missing if places[name])))
    raise UserError(
        f"{len(missing)} files of the split do not exist: {first_few(shown)}; a sample is a picture and its label"
        + (f"; see {lines}" if lines else "")
    )
