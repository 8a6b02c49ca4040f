"""Pictures that a split's patterns pass over though one may think that they are taken: told, with what to write."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from esl_dist.data.descriptions import Elsewhere
from esl_dist.data.patterns import EXTENSIONS, FilePattern, NamePattern, is_picture, takes
from esl_dist.data.source_files import FOLDER, Entry, files_by_name, first_few

RESOURCE_FORK = "._"
"""Beginning of the files in which macOS keeps what other systems' disks cannot; they are named like pictures."""


def passed_over(
    entries: Iterable[Entry], image: FilePattern, names: Sequence[NamePattern], elsewhere: Elsewhere
) -> list[str]:
    """Return a line each on pictures in sub-folders, pictures with another extension, and hidden pictures.

    Args:
        entries: what lies below the folder of `image`.
        image: the pattern of pictures.
        names: the patterns of the split's names.
        elsewhere: what is taken by other parts of the description.
    """
    pictures = sorted((entry for entry in entries if _is_left(entry, image, elsewhere)), key=lambda entry: entry.inner)
    deeper = [pattern.deeper() for pattern in names]
    taken = files_by_name(pictures, image)
    below, hidden = [], []
    for name, entry in ((name, entry) for name, found in taken.items() for entry in found):
        if takes(names, image, name):
            continue
        if takes(deeper, image, name):
            if not takes(elsewhere.names, image, name):
                below.append(entry.inner)
        elif takes(deeper, image, name, hidden_too=True):
            hidden.append(entry.inner)
    others = [
        path
        for name, path in other_pictures(pictures, image).items()
        if name not in taken and takes(names, image, name)
    ]
    write = ", ".join(repr(str(pattern)) for pattern in deeper)
    facts = [
        (below, f"in sub-folders are passed over; names: [{write}] takes them too"),
        (others, f"differ from the pattern {image} in nothing but their extension and are passed over; .* takes any"),
        (hidden, "are hidden and passed over; a pattern of names that begins with a dot takes them"),
    ]
    return [f"{len(paths)} pictures {text}: {first_few(paths)}" for paths, text in facts if paths]


def _is_left(entry: Entry, image: FilePattern, elsewhere: Elsewhere) -> bool:
    """Say whether an entry is a picture that is no label, and no fork of another file."""
    path = image.folder + entry.inner
    return (
        is_picture(path)
        and entry.kind != FOLDER
        and not path.rpartition("/")[2].startswith(RESOURCE_FORK)
        and not any(
            path.startswith(label.folder) and label.name_in(path[len(label.folder) :]) for label in elsewhere.labels
        )
    )


def other_pictures(entries: Iterable[Entry], pattern: FilePattern) -> dict[str, str]:
    """Return name → path below the pattern's folder of pictures that differ from it in nothing but their extension."""
    found = ((pattern.name_in_other_picture(entry.inner), entry.inner) for entry in entries)
    return {name: path for name, path in found if name is not None}


def why_nothing(root: Path, image: FilePattern, names: Sequence[NamePattern]) -> list[str]:
    """Return what may be the cause where a split has no pictures."""
    causes = []
    if not (root / image.folder).is_dir():
        causes.append(f"there is no folder {root / image.folder}")
    if image.extension and any(str(pattern).lower().endswith(EXTENSIONS) for pattern in names):
        causes.append("names are written without the extension")
    return causes
