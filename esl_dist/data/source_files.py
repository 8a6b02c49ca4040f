"""What lies in a data set's folders: every folder is listed once, whatever the number of samples."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from esl_dist.data.patterns import composed
from esl_dist.errors import UserError

FILE = ""
FOLDER = "a folder"
UNREADABLE = "a folder that cannot be listed"
NOWHERE = "a link that leads nowhere"
SPECIAL = "neither a file nor a folder"
SHOWN = 5
"""Of how many texts a message shows."""
MOST_WAYS = 1000
"""Paths through links to one folder; between eight folders that hold links to each other there are 13,700 each."""


class Entry(NamedTuple):
    """What a folder holds: `inner`, the path below the folder that was scanned, in NFC; `path` on disk; its `kind`.

    A folder that cannot be listed has a second entry, with a `/` at the end of `inner` and the reason in `path`.
    """

    inner: str
    path: str
    kind: str


def scan(root: Path, folder: str, depth: float) -> list[Entry]:
    """List a folder below `root` and all its sub-folders, through links too; a link back to a folder above ends there.

    Links that lie deeper than samples are not followed: what lies there is listed only to tell what is passed over.

    Args:
        root: the data set's folder.
        folder: a path below it that ends with `/`, or ""; folders that differ from it only in their Unicode form count.
        depth: how many sub-folders deep samples may lie.

    Raises:
        UserError: links between folders lead to one of them in more than `MOST_WAYS` ways.
    """
    found: list[Entry] = []
    ways = Counter[tuple[int, int]]()
    waiting = [(path, "", frozenset[tuple[int, int]]()) for path in _in_any_form(os.fspath(root), folder)]
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
                inside = [Entry(inner + composed(one.name), one.path, _kind(one)) for one in listing]
        except OSError as error:
            inside = [Entry(inner, f"{path} ({error.strerror})", UNREADABLE)]
        found += inside
        waiting += [
            (one.path, f"{one.inner}/", above | {identity})
            for one in inside
            if one.kind == FOLDER and (one.inner.count("/") < depth or not os.path.islink(one.path))
        ]
    return found


def _in_any_form(root: str, folder: str) -> list[str]:
    found = [root]
    for part in folder.split("/")[:-1]:
        paths = [os.path.join(path, name) for path in found for name in _same_names(path, part)]
        found = [path for path in paths if os.path.isdir(path)]
    return found


def _same_names(folder: str, name: str) -> list[str]:
    try:
        names = [] if name.isascii() else os.listdir(folder)
    except OSError:
        names = []  # It may be entered all the same, if the name is the one on disk.
    return sorted({name, *(one for one in names if composed(one) == composed(name))})


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return FILE
        if entry.is_dir():
            return FOLDER
    except OSError:  # a link to itself, or to what this user may not see
        return NOWHERE
    return NOWHERE if entry.is_symlink() else SPECIAL


def first_few(texts: list[str], number: int = SHOWN) -> str:
    """Return the first few of a list as a message names them."""
    return ", ".join(texts[:number]) + (", …" if len(texts) > number else "")
