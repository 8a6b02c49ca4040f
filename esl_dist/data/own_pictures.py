"""Pictures of one's own, outside any data set: which a folder, a pattern or a list means, and what they are called.

What is made of a picture lies under its name, its path without a picture's extension, so that each name stands once. A
picture is read as viewers show it: turned as its EXIF tag asks.
"""

import glob
import itertools
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esl_dist.data.patterns import ANY_DEPTH, composed, is_picture
from esl_dist.data.source_files import FOLDER, UNREADABLE, first_few, scan
from esl_dist.data.sources import Reading, read_picture
from esl_dist.data.split_lists import lines_of_list
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.files import as_given, refuse_as_key

LIST = ".txt"
"""Extension of a list."""

REMEDY = "see to it that it can be read or take it away, and start again"

Named = tuple[str, Path]
"""A path below the place that was asked for, with `/` between folders, and the file."""


class OwnPictures(Protocol):
    """Pictures that any process can read."""

    @property
    def folder(self) -> Path | str:
        """What holds them, for messages."""

    @property
    def names(self) -> Sequence[str]:
        """Of what is made of each."""

    @property
    def most_readers(self) -> int | None:
        """Processes of a rank among which reading can be shared; None: any number."""

    def where(self, position: int) -> str:
        """Name a picture in messages."""

    def pixels(self, position: int) -> NDArray[np.uint8]:
        """Return a picture's pixels, BGR (height, width, 3).

        Raises:
            CorruptSampleError: it is no picture that is clear, or it alone cannot be read; the message names it.
            UserError: its bytes cannot be had, which may be so of others.
        """


@dataclass(frozen=True)
class PictureFiles:
    """Pictures in files of their own; `passed_over` are the paths of what is no picture, or hidden."""

    folder: Path | str
    names: Sequence[str]
    files: Sequence[Path]
    passed_over: list[str]
    largest_pixels: int
    most_readers: int | None = None

    def where(self, position: int) -> str:
        """Name a picture in messages: its file."""
        return str(self.files[position])

    def pixels(self, position: int) -> NDArray[np.uint8]:
        """Return a picture's pixels, BGR (height, width, 3), turned as its EXIF tag asks."""
        file = self.files[position]
        try:
            if not file.is_file() and _holds_files(file.parent):
                # A pipe, say, would be waited for.
                raise CorruptSampleError(f"{file}: no such file")
            return read_picture(file.read_bytes(), Reading(None, None, "apply", self.largest_pixels)).pixels
        except ValueError as error:
            raise CorruptSampleError(f"{file}: {error}") from error
        except OSError as error:
            if isinstance(error, PermissionError) and _holds_files(file.parent):
                raise CorruptSampleError(f"{file}: cannot be read ({error.strerror})") from error
            raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from error


def _holds_files(folder: Path) -> bool:
    """Say whether a folder can be listed and is not empty, as that of a disk which is gone."""
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def is_video(place: str) -> bool:
    """Say whether a place is a file that is neither a list nor named like a picture."""
    return os.path.isfile(place) and not place.lower().endswith(LIST) and not is_picture(place)


def refuse_missing_pictures(place: str) -> None:
    """Make sure that there is what `pictures` names, or that it is a pattern.

    Raises:
        UserError: it is neither.
    """
    if not os.path.exists(place) and not glob.has_magic(place):
        raise UserError(
            f"pictures={place}: there is none; expected a folder, a pattern in quotes, a list (.txt), a picture or a "
            "video"
        )


def searched(place: str) -> str:
    """Return what `pictures` looks into: of a pattern with folders in it, the folder that it begins with."""
    if os.path.exists(place) or not glob.has_magic(os.path.dirname(place)):
        return place
    return str(_fixed_part(place))


def find_pictures(place: str, largest_pixels: int) -> PictureFiles:
    """Return the pictures that a folder, a pattern, a list or a picture's file means, in the order of their names.

    Raises:
        UserError: there is none, a listed one is missing, a folder cannot be listed, or what would become of two is in
            each other's way.
    """
    refuse_missing_pictures(place)
    root, others = Path(place), list[str]()
    if root.is_dir():
        found, others = _apart(_below(root))
    elif root.is_file():
        found = _listed(root) if place.lower().endswith(LIST) else [(root.name, root)]
        root = root.parent
    else:
        root = _fixed_part(place)
        _refuse_unlisted(place)
        # `**/**` gives a path twice.
        matches = dict.fromkeys(map(Path, glob.glob(place, recursive=True)))
        found, others = _apart((one.relative_to(root).as_posix(), one) for one in matches if not os.path.isdir(one))
    if not found:
        beside = f", but {first_few(others)}" if others else ""
        raise UserError(f"pictures={place}: holds no picture{beside}; expected png, jpg or such")
    named = sorted((_name(path), file) for path, file in found)
    for name, file in named:
        refuse_as_key(f"{name}.png", f"{as_given(str(file))}: the name of what is made of it,")
    _refuse_collisions(place, named)
    return PictureFiles(root, [name for name, _ in named], [file for _, file in named], others, largest_pixels)


def _name(path: str) -> str:
    path = PurePosixPath(composed(path)).as_posix()
    # Of what a list names otherwise, `cam.1` and `cam.2`, nothing can be left out.
    return posixpath.splitext(path)[0] if is_picture(path) else path


def _refuse_collisions(place: str, named: Sequence[Named]) -> None:
    for (name, file), (following, other) in itertools.pairwise(named):
        if name == following and file == other:
            raise UserError(f"{place}: names {file} twice; take one line out")
        if name == following:
            raise UserError(f"{file} and {other} would both become {name}.png; rename one of them")
    folders = {str(folder): file for name, file in named for folder in PurePosixPath(name).parents}
    for name, file in named:
        if (within := folders.get(f"{name}.png")) is not None:
            raise UserError(f"{file} would become {name}.png, a folder for {within}; rename the picture or the folder")


def _refuse_unlisted(pattern: str) -> None:
    """Refuse folders that `glob` would pass over without a word: those in which a part of the pattern is looked for."""
    parts = Path(pattern).parts
    for depth in range(len(_fixed_part(pattern).parts), len(parts) + (parts[-1] == ANY_DEPTH)):
        for folder in glob.glob(os.path.join(os.curdir, *parts[:depth], ""), recursive=True):
            try:
                os.scandir(folder).close()
            except OSError as error:
                raise _unlisted(f"{os.path.normpath(folder)} ({error.strerror})") from error


def _unlisted(folder: str) -> UserError:
    return UserError(f"{folder}: {UNREADABLE}; make it readable or take it away, and start again")


def _below(root: Path) -> Iterator[Named]:
    for entry in scan(root, "", inf):
        if entry.kind == UNREADABLE:
            raise _unlisted(entry.path)
        if entry.kind != FOLDER:
            yield entry.inner, Path(entry.path)


def _fixed_part(pattern: str) -> Path:
    """Return the folder that a pattern begins with: `frames` of `frames/*/left_*.png`."""
    parts = Path(pattern).parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _apart(files: Iterable[Named]) -> tuple[list[Named], list[str]]:
    """Return pictures, by their names, and the paths of all other files; hidden ones are among these."""
    found, others = list[Named](), list[str]()
    for path, file in files:
        if is_picture(path) and not any(part.startswith(".") for part in path.split("/")):
            found.append((path, file))
        else:
            others.append(path)
    return found, sorted(others)


def _listed(file: Path) -> list[Named]:
    """Read a list; a file outside the list's folder goes by its own name."""
    found, folder = [], os.path.abspath(file.parent)
    try:
        lines = lines_of_list(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: {error}") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        picture = file.parent / line
        if not picture.is_file():
            raise UserError(f"{file}: line {number}: {picture}: no such file; correct the list or take the line out")
        inner = os.path.relpath(os.path.join(folder, line), folder)
        is_outside = inner.split(os.sep)[0] == os.pardir
        found.append((picture.name if is_outside else inner, picture))
    return found
