"""A file is whole or absent: written beside its final place, flushed to disk, renamed.

A reader, or the same program started again after a power cut, never meets half a file under a final name.
"""

import errno
import hashlib
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from esl_dist.errors import UserError

PARTIAL_SUFFIX = ".partial"

SHOWN_CHARACTERS = 80
"""How much of an impossible name a message shows."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only when the block ends without an exception.

    The bytes go to `path` + ".partial" first; they are fsynced before the rename, the folder after it.

    Raises:
        OSError: the disk is full or fails; its `filename` says of which file.
    """
    make_folder(path.parent)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with open_to_write(partial) as file:
            yield file
            file.flush()
            with _failure_naming(partial):
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def open_to_write(path: Path, mode: Literal["wb", "xb"] = "wb") -> IO[bytes]:
    """Open a binary file whose writes name it when they fail, as opening does; plain ones leave out which disk is full.

    Raises:
        OSError: it cannot be opened; later, by its methods: it cannot be written.
    """
    return io.BufferedWriter(_NamedFile(os.fspath(path), mode))


class _NamedFile(io.FileIO):
    def write(self, content: Any) -> int:
        with _failure_naming(self.name):
            return super().write(content)


@contextmanager
def _failure_naming(path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


LONGEST_NAME = 255
"""Bytes of a name in a folder; Linux's file systems take no more."""


def refuse_as_name(name: str, what: str) -> None:
    """Make sure that a name from outside can be part of a path.

    Raises:
        UserError: it is empty, too long, not Unicode, holds control characters, or leads to another folder.
    """
    if (problem := _problem_of_name(name)) is not None:
        raise UserError(f"{what} {_shortened(name)} is impossible: {problem}")


def refuse_as_key(key: str, what: str) -> None:
    """Make sure that a sample's key, which may hold folders, stays in the folder that it is unpacked into.

    Raises:
        UserError: as `refuse_as_name`, for each of its parts.
    """
    for part in key.split("/"):
        if (problem := _problem_of_name(part)) is not None:
            raise UserError(f"{what} {_shortened(key)} is impossible: its part {_shortened(part)}: {problem}")


def _problem_of_name(name: str) -> str | None:
    if name in ("", ".", "..") or "/" in name:
        return "expected a name without '/' that is not empty, '.' or '..'"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8; rename it"
    if size > LONGEST_NAME:
        return f"it has {size} bytes; expected at most {LONGEST_NAME}"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "it holds control characters; expected a name that can be printed"
    return None


def _shortened(name: str) -> str:
    return repr(name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; all of them survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
"""What network file systems and FUSE say of a folder that is to be flushed, and any of one that may not be read."""

_told_of_folders = False
"""Whether this process has warned that folders cannot be flushed."""


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` (a rename, a new file) survive a power cut, where its file system can; else warn once.

    Raises:
        OSError: the disk is full or fails.
    """
    try:
        with _failure_naming(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
        _tell_of_folders(folder, error.strerror)


def _tell_of_folders(folder: Path, reason: str | None) -> None:
    global _told_of_folders
    # Of several ranks on the first, which writes wherever another does.
    if not _told_of_folders and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: {folder}: this file system cannot flush folders ({reason}); a power cut may take new files",
            file=sys.stderr,
            flush=True,
        )
    _told_of_folders = True


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write `content` as JSON (on one line if `indent` is None), whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); it may be damaged: make it again") from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
