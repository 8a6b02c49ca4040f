"""A data set's folders → pairs of picture and label files, as its YAML description says.

A description (`descriptions`) names the folder, a pattern for pictures and one for labels, the splits, and the class
sets. In the patterns `{split}` stands for the split's name and `{name}` for a sample's name, which may hold folders
(`frankfurt/frankfurt_000000_000294`). What lies in the folders is a sample, or is refused or told by name: pictures
that no pattern takes are easily thought to be packed.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from esl_dist.data.class_sets import NO_LABELS, read_labels
from esl_dist.data.descriptions import Description, label_patterns, read_description
from esl_dist.data.images import LARGEST_PIXELS
from esl_dist.data.labels import ClassSet
from esl_dist.data.patterns import EXTENSIONS, FilePattern, NamePattern, is_picture
from esl_dist.data.source_files import FILE, FOLDER, SHOWN, UNREADABLE, Entry, first_few, scan
from esl_dist.data.sources import Reading
from esl_dist.data.split_lists import read_list
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_key

RESOURCE_FORK = "._"
"""Beginning of the files in which macOS keeps what other systems' disks cannot; they are named like pictures."""


def key_of(name: str) -> str:
    """Return a sample's key in the shards: its name, with underscores for dots, where WebDataset would cut it."""
    return name.replace(".", "_")


@dataclass(frozen=True)
class Pair:
    """One sample's name (Unicode form NFC) and its two files; `label` is None where the split has no labels."""

    name: str
    image: Path
    label: Path | None = None

    @property
    def key(self) -> str:
        """Its key in the shards."""
        return key_of(self.name)

    def files(self) -> dict[str, Path]:
        """Return the files there should be, by `image` and `label`."""
        return {"image": self.image} | ({} if self.label is None else {"label": self.label})


@dataclass(frozen=True)
class Layout:
    """One split of a data set.

    Attributes:
        dataset: the data set's name.
        split: the split's name.
        pairs: sorted by name.
        class_sets: name → classes; none where the split has no labels.
        ignore_ids: the raw ids that belong to no class.
        reading: how the files are to be read.
        keep_aspect_ratio: whether pictures are fitted and padded, not stretched.
        skip_other_sizes: whether a pair whose sizes differ is left out, not refused.
    """

    dataset: str
    split: str
    pairs: tuple[Pair, ...]
    class_sets: dict[str, ClassSet]
    ignore_ids: frozenset[int]
    reading: Reading = Reading()
    keep_aspect_ratio: bool = False
    skip_other_sizes: bool = False

    def known_ids(self) -> frozenset[int]:
        """Return the raw ids that the description accounts for."""
        return self.ignore_ids.union(*(item.ids for classes in self.class_sets.values() for item in classes))


class _Side(NamedTuple):
    """The pictures or the labels: their pattern, what lies below its folder, and the files it takes, by sample."""

    pattern: FilePattern
    entries: list[Entry]
    files: dict[str, list[Entry]]


def read_layout(
    description_file: Path, split: str, root: Path | None = None, largest_pixels: int = LARGEST_PIXELS
) -> Layout:
    """Find the pairs of a split; pictures that its patterns pass over are told by a warning.

    Args:
        description_file: the data set's YAML description.
        split: a split it names.
        root: the data set's folder, if not the one it names.
        largest_pixels: most pixels of a picture or a label.

    Raises:
        UserError: a mistake in the description or a list, an unknown split, a missing folder or one that may not be
            listed, a split without pictures, a name that is not UTF-8, two names that give one key, two files of
            one sample, or pictures without labels or labels without pictures (the first few are named).
    """
    description, patterns, names = read_description(description_file, split)
    folder = Path(description.root) if root is None else root
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder (the data set {description.name}); looked for {folder.absolute()}, for root is "
            "relative to the working directory (a split's list to the description); give its place as root=…"
        )
    sides = _sides(folder, patterns, max((pattern.depth() for pattern in names), default=math.inf))
    labels = read_labels(description, folder, description_file) if len(sides) > 1 else NO_LABELS
    class_sets, ignore_ids, colors = labels
    if (list_file := description.splits[split].list) is not None:
        places = _listed(description_file, description_file.parent / list_file, folder, sides)
    else:
        places = _matching(description, split, folder, sides, names)
    return Layout(
        dataset=description.name,
        split=split,
        pairs=_pairs(folder, sides, places),
        class_sets=class_sets,
        ignore_ids=ignore_ids,
        reading=Reading(description.label_channel, colors, description.exif_orientation, largest_pixels),
        keep_aspect_ratio=description.keep_aspect_ratio,
        skip_other_sizes=description.skip_other_sizes,
    )


def _sides(root: Path, patterns: Sequence[FilePattern], depth: float) -> list[_Side]:
    depth += max(pattern.after.count("/") for pattern in patterns)
    entries = {folder: scan(root, folder, depth) for folder in {pattern.folder for pattern in patterns}}
    sides = [_Side(pattern, entries[pattern.folder], {}) for pattern in patterns]
    for pattern, inside, files in sides:
        for entry in inside:
            name = pattern.name_in(entry.inner)
            # What is named like a picture and is none is to be reported.
            may_be_file = entry.kind not in (FOLDER, UNREADABLE) or pattern.extension or is_picture(entry.inner)
            if name is not None and may_be_file:
                files.setdefault(name, []).append(entry)
    return sides


def _refuse_unlisted(sides: Sequence[_Side], depth: float) -> None:
    """Refuse folders that could not be listed where samples may lie, whose names hold `depth` folders at most."""
    deepest = depth + max(side.pattern.after.count("/") for side in sides)
    entries = itertools.chain(*(side.entries for side in sides))
    paths = {entry.path for entry in entries if entry.kind == UNREADABLE and entry.inner.count("/") <= deepest}
    if paths:
        few = first_few(sorted(paths))
        raise UserError(f"folders of the data set cannot be listed: {few}; allow it (chmod) or move them")


def _listed(origin: Path, list_file: Path, root: Path, sides: Sequence[_Side]) -> dict[str, str]:
    """Return the sorted names of a list, each with its line as messages name it."""
    known = set().union(*(side.files for side in sides))
    try:
        lines = read_list(list_file, root, [side.pattern for side in sides], known)
    except (OSError, ValueError) as error:
        raise UserError(f"{origin}: the split's list {list_file} cannot be read ({error})") from error
    _refuse_unlisted(sides, max(name.count("/") for name in lines))
    return {name: f"line {line} of {list_file}" for name, line in sorted(lines.items())}


def _matching(
    description: Description, split: str, root: Path, sides: Sequence[_Side], patterns: Sequence[NamePattern]
) -> dict[str, str]:
    """Return the names that the split's patterns take, also of labels without pictures: they are to be reported."""
    _refuse_unlisted(sides, max(pattern.depth() for pattern in patterns))
    names = {name for side in sides for name in side.files if _takes(patterns, side.pattern, name)}
    image = sides[0].pattern
    what = f"{root}: split {split} of {description.name}"
    others = list(_passed_over(description, split, sides[0], patterns))
    if not names:
        causes = []
        if not (root / image.folder).is_dir():
            causes.append(f"there is no folder {root / image.folder}")
        if image.extension and any(str(pattern).lower().endswith(EXTENSIONS) for pattern in patterns):
            causes.append("names are written without the extension")
        raise UserError("; ".join([f"{what} has no pictures ({image})", *causes, *others]))
    for text in others:
        print(f"warning: {what}: {text}", file=sys.stderr, flush=True)
    return dict.fromkeys(sorted(names), "")


def _takes(patterns: Sequence[NamePattern], files: FilePattern, name: str, hidden_too: bool = False) -> bool:
    return any(pattern.takes(name, files.before != "", hidden_too) for pattern in patterns)


def _passed_over(description: Description, split: str, images: _Side, patterns: Sequence[NamePattern]) -> Iterator[str]:
    """Yield a line each on pictures in sub-folders, with another extension, and hidden ones, with what to write."""
    filled = {text.replace("{split}", split) for text in label_patterns(description)}
    labels = [FilePattern.cut(text) for text in filled if text.count("{name}") == 1]
    others = description.splits.values() if "{split}" not in description.image else []
    elsewhere = [NamePattern.cut(text) for other in others for text in other.names]
    deeper = [pattern.deeper() for pattern in patterns]
    image = images.pattern
    below, hidden, other_extension = [], [], dict[str, str]()
    for entry in sorted(images.entries):
        if entry.kind == FOLDER or not _is_picture(image.folder + entry.inner, labels):
            continue
        name, other = image.name_in(entry.inner), image.name_in(entry.inner, other_extension=True)
        if other is not None and other not in images.files and _takes(patterns, image, other):
            other_extension[other] = entry.inner
        if name is None or _takes(patterns, image, name):
            continue
        if _takes(deeper, image, name):
            if not _takes(elsewhere, image, name):
                below.append(entry.inner)
        elif _takes(deeper, image, name, hidden_too=True):
            hidden.append(entry.inner)
    write = ", ".join(repr(str(pattern)) for pattern in deeper)
    for paths, text in (
        (below, f"in sub-folders are passed over; names: [{write}] takes them too"),
        (
            list(other_extension.values()),
            f"differ from the pattern {image} in nothing but their extension and are passed over; .* takes any",
        ),
        (hidden, "are hidden and passed over; a pattern of names that begins with a dot takes them"),
    ):
        if paths:
            yield f"{len(paths)} pictures {text}: {first_few(paths)}"


def _is_picture(path: str, labels: Sequence[FilePattern]) -> bool:
    """Say whether a file is named like a picture, is no label and no fork of another file."""
    is_fork = path.rpartition("/")[2].startswith(RESOURCE_FORK)
    return (
        is_picture(path)
        and not is_fork
        and not any(path.startswith(label.folder) and label.name_in(path[len(label.folder) :]) for label in labels)
    )


def _pairs(root: Path, sides: Sequence[_Side], places: Mapping[str, str]) -> tuple[Pair, ...]:
    """Return the pairs of sorted names, which have their places in a list as a message names them."""
    names: dict[str, str] = {}
    for name in places:
        refuse_as_key(name, f"{root / sides[0].pattern.folder}: sample")
        if (other := names.setdefault(key_of(name), name)) != name:
            raise UserError(f"samples {other!r} and {name!r} would both have the key {key_of(name)!r}; rename one")
    found = {name: [side.files.get(name, []) for side in sides] for name in places}
    for entries in itertools.chain(*found.values()):
        if len(entries) > 1:
            raise UserError(f"two files of one sample: {', '.join(sorted(one.path for one in entries))}; remove one")
    missing = [(name, side) for name in places for side, entries in zip(sides, found[name], strict=True) if not entries]
    if missing:
        raise _without_files(root, missing, places)
    broken = [f"{one.path}: {one.kind}" for [one] in itertools.chain(*found.values()) if one.kind != FILE]
    if broken:
        raise UserError(f"{len(broken)} of the split's files are no files: {first_few(broken)}; remove or replace them")
    return tuple(Pair(name, *(Path(entry.path) for [entry] in of_sample)) for name, of_sample in found.items())


def _without_files(root: Path, missing: Sequence[tuple[str, _Side]], places: Mapping[str, str]) -> UserError:
    # Pictures and labels may have one pattern, and a missing file then misses twice.
    by_path = {side.pattern.first_file_of(name): (name, side) for name, side in missing}
    shown = []
    # As many as are shown, and one more: each takes a look at all entries.
    for path, (name, side) in itertools.islice(by_path.items(), SHOWN + 1):
        others = [entry.inner for entry in side.entries if side.pattern.name_in(entry.inner, True) == name]
        shown.append(f"{root / path}" + (f" (there is {others[-1]})" if others else ""))
    lines = first_few(list(dict.fromkeys(places[name] for name, _ in missing if places[name])))
    return UserError(
        f"{len(by_path)} files of the split do not exist: {first_few(shown)}; a sample is a picture and its label"
        + (f"; see {lines}" if lines else "")
    )
