"""What lies in a data set's folders: every folder is listed once, whatever the number of samples."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from esl_dist.data.patterns import FilePattern, composed, is_picture
from esl_dist.errors import UserError

FILE = ""
FOLDER = "a folder"
NOWHERE = "a link that leads nowhere"
SPECIAL = "neither a file nor a folder"
MOST_WAYS = 1000
"""Paths through links to one folder; between eight folders that hold links to each other there are 13,700 each."""


class Entry(NamedTuple):
    """What a folder holds: `inner`, the path below the folder that was scanned, in NFC; `path` on disk; its `kind`."""

    inner: str
    path: str
    kind: str


class Scan(NamedTuple):
    """All that lies below a folder, and the folders (paths as of `Entry.inner`, with their paths) not to be listed."""

    entries: list[Entry]
    unreadable: list[tuple[str, str]]


def scan(root: Path, folder: str, depth: float) -> Scan:
    """List a folder below `root` and all its sub-folders, through links too; a link back to a folder above ends there.

    Links that lie deeper than samples are not followed: what lies there is listed only to tell what is passed over.

    Args:
        root: the data set's folder.
        folder: a path below it that ends with `/`, or ""; folders that differ from it only in their Unicode form count.
        depth: how many sub-folders deep samples may lie.

    Raises:
        UserError: links between folders lead to one of them in more than `MOST_WAYS` ways.
    """
    found = Scan([], [])
    ways = Counter[tuple[int, int]]()
    waiting = [(path, "", frozenset[tuple[int, int]]()) for path in _folders(root, folder)]
    while waiting:
        path, inner, above = waiting.pop()
        try:
            status = os.stat(path)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            ways[identity] += 1
            if ways[identity] > MOST_WAYS:
                raise UserError(
                    f"{path}: links between folders lead there in more than {MOST_WAYS} ways; remove such links"
                )
            with os.scandir(path) as listing:
                entries = [Entry(inner + composed(one.name), one.path, _kind(one)) for one in listing]
        except OSError as error:
            found.unreadable.append((inner, f"{path} ({error.strerror})"))
            continue
        found.entries.extend(entries)
        waiting += [
            (one.path, f"{one.inner}/", above | {identity})
            for one in entries
            if one.kind == FOLDER and (one.inner.count("/") < depth or not os.path.islink(one.path))
        ]
    return found


def _folders(root: Path, folder: str) -> list[str]:
    found = [os.fspath(root)]
    for part in folder.split("/")[:-1]:
        names = {part}.union(*(_same_names(path, part) for path in found)) if not part.isascii() else {part}
        found = [
            joined for path in found for name in sorted(names) if os.path.isdir(joined := os.path.join(path, name))
        ]
    return found


def _same_names(folder: str, name: str) -> list[str]:
    try:
        return [one for one in os.listdir(folder) if composed(one) == composed(name)]
    except OSError:
        return []  # It may be entered all the same, if the name is the one on disk.


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return FILE
        if entry.is_dir():
            return FOLDER
    except OSError:  # a link to itself, or to what this user may not see
        return NOWHERE
    return NOWHERE if entry.is_symlink() else SPECIAL


def files_by_name(entries: Iterable[Entry], pattern: FilePattern) -> dict[str, list[Entry]]:
    """Return the files that a pattern takes by the names of their samples, as far as they lie below its folder.

    A sample may have several; what is named like a picture and is none is among them, for it is to be reported.
    """
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        name = pattern.name_in(entry.inner)
        if name is not None and (entry.kind != FOLDER or pattern.extension or is_picture(entry.inner)):
            found.setdefault(name, []).append(entry)
    return found


def refuse_unreadable(scans: Iterable[Scan], depth: float) -> None:
    """Make sure that every folder where samples are looked for could be listed.

    Args:
        scans: what was found.
        depth: how many sub-folders deep samples are looked for.

    Raises:
        UserError: some could not; the first few are named.
    """
    paths = sorted({path for one in scans for inner, path in one.unreadable if inner.count("/") <= depth})
    if paths:
        raise UserError(f"folders of the data set cannot be listed: {first_few(paths)}; allow it (chmod) or move them")


def first_few(texts: list[str]) -> str:
    """Return the first few of a list as a message names them."""
    return ", ".join(texts[:5]) + (", …" if len(texts) > 5 else "")
