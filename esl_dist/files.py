"""A file is whole or absent: written beside its final place, flushed to disk, renamed.

A reader, or the same program started again after a power cut, never meets half a file under a final name.
"""

import errno
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from esl_dist.errors import UserError, beginning
from esl_dist.urls import without_secrets

PARTIAL_SUFFIX = ".partial"

SHOWN_CHARACTERS = 100
"""How much of an impossible name a message shows."""


@contextmanager
def whole_file(path: Path, by: str = "") -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only when the block ends without an exception.

    The bytes go to a file beside it first, whose name ends in `by` + ".partial"; they are fsynced before the rename,
    the folder after it. `by` is for files that several processes may write at once: a text of this one's own.

    Raises:
        OSError: the disk is full or fails; its `filename` says of which file.
    """
    make_folder(path.parent)
    partial = path.with_name(_partial_name(path.name, by))
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


def _partial_name(name: str, by: str) -> str:
    """Return the name of a file that is not finished; that of one whose name leaves no room is of its digest."""
    whole = name + by + PARTIAL_SUFFIX
    if len(os.fsencode(whole)) <= LONGEST_NAME:
        return whole
    return hashlib.sha256(os.fsencode(name)).hexdigest() + by + PARTIAL_SUFFIX


def open_to_write(path: Path, mode: Literal["wb", "xb", "ab"] = "wb") -> IO[bytes]:
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

LONGEST_PATH = 4095
"""Bytes of a path; Linux takes no more."""

UNSEEN = ("Cf", "Zl", "Zp")
"""Unicode's categories of separators, and of characters that change the direction or are invisible."""

JOINERS = "\u200c\u200d"
"""Format characters that words of some languages are written with."""


def refuse_as_name(name: str, what: str) -> None:
    """Make sure that a name from outside can be part of a path.

    Raises:
        UserError: it is empty, too long, not Unicode, holds control characters, or leads to another folder.
    """
    _refuse(name, what, _problem_of_name(name))


def refuse_as_key(key: str, what: str) -> None:
    """Make sure that a sample's key, which may hold folders, stays in the folder that it is unpacked into.

    Raises:
        UserError: as `refuse_as_name`, for each of its parts, or it is too long as a whole.
    """
    for part in key.split("/"):
        if (problem := _problem_of_name(part)) is not None:
            _refuse(key, what, f"its part {shortened(part)}: {problem}")
    _refuse(key, what, problem_of_text(key, LONGEST_PATH))


def refuse_as_label(label: str, what: str) -> None:
    """Make sure that what something is called, such as a class, can be printed; it is part of no path.

    Raises:
        UserError: it is empty, too long, not Unicode, or holds control characters or others that cannot be seen.
    """
    _refuse(label, what, problem_of_text(label, LONGEST_NAME, forbidden=UNSEEN))


def _refuse(text: str, what: str, problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"{what} {shortened(text)} is impossible: {problem}")


def _problem_of_name(name: str) -> str | None:
    if name in ("", ".", "..") or "/" in name:
        return "expected a name without '/' that is not empty, '.' or '..'"
    return problem_of_text(name, LONGEST_NAME)


def problem_of_text(text: str, most: int, forbidden: Collection[str] = ()) -> str | None:
    """Say why a text is none that this program works with; None: it is one.

    Args:
        text: the text.
        most: bytes in UTF-8.
        forbidden: Unicode's categories of characters that may not be in it, beside control characters.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8; rename it"
    if size == 0 or size > most:
        return f"it has {size} bytes; expected at most {most}" if size else "expected one that is not empty"
    # What can be printed needs no second look: an index has many keys.
    categories = set() if text.isprintable() else {unicodedata.category(one) for one in text if one not in JOINERS}
    if "Cc" in categories:
        return "it holds control characters; expected what can be printed"
    unseen = not categories.isdisjoint(forbidden)
    return "it holds characters that cannot be seen; expected what can be printed" if unseen else None


def shortened(value: object) -> str:
    """Return a value from outside as a message shows it: on one line, and cut."""
    if isinstance(value, str):
        return repr(beginning(without_secrets(value), SHOWN_CHARACTERS))
    try:
        return beginning(without_secrets(repr(value)), SHOWN_CHARACTERS)
    except Exception:
        # Of a whole number with thousands of digits, say.
        return f"a {type(value).__name__} that cannot be shown"


def as_given(value: object) -> str:
    """Return what the user gave as a message repeats it: a text that can be printed as it was written, and cut."""
    if isinstance(value, str) and value.isprintable():
        return beginning(without_secrets(value), SHOWN_CHARACTERS)
    return shortened(value)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; all of them survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def why_not_writable(folder: Path) -> str | None:
    """Say why no files can be written into a folder, which need not be there yet; None: one was, for a moment."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            return None
    except OSError as error:
        return error.strerror or str(error)


def refuse_unwritable(setting: str, place: str, folder: Path) -> None:
    """Make sure that files can be written into a folder, which lies at or below the place that a setting gives.

    Raises:
        UserError: they cannot; it names the setting.
    """
    if why_not := why_not_writable(folder):
        raise UserError(f"{setting}: cannot write into {place}: {why_not}; choose another place as {setting}=…")


CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
"""What network file systems and FUSE say of a folder that is to be flushed, and any of one that may not be read."""

_told_of_folders = False
"""Whether this process has warned that folders cannot be flushed."""


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` (a rename, a new file) survive a power cut, where its file system can; else warn once.

    Raises:
        OSError: the disk is full or fails.
    """
    global _told_of_folders
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
        # Of several ranks by the first, which writes wherever another does.
        if not _told_of_folders and os.environ.get("RANK", "0") == "0":
            what = f"this file system cannot flush folders ({error.strerror}); a power cut may take new files"
            print(f"warning: {folder}: {what}", file=sys.stderr, flush=True)
        _told_of_folders = True


def write_json(path: Path, content: Any, indent: int | None = 1, by: str = "") -> None:
    """Write `content` as JSON (on one line if `indent` is None), whole or not at all; `by` as of `whole_file`."""
    with whole_file(path, by) as file:
        file.write((json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


DEEPEST_JSON = 100
"""Levels of lists and mappings inside each other; no file of this project has a tenth of them."""


def read_json(path: Path, remedy: str = "make it again") -> Any:
    """Read a JSON file strictly: UTF-8, finite numbers, no key twice, no text that is no Unicode.

    What is no such JSON is refused with `remedy`.

    Raises:
        UserError: the file is missing, is not JSON, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            # A pipe, say, would be waited for.
            raise UserError(f"{path}: cannot be read as JSON (it is no file); put the file back")
        return parsed_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); it may be damaged: {remedy}") from error


def parsed_json(text: str) -> Any:
    """Return what JSON says, read as strictly as `read_json`.

    Raises:
        ValueError: it is not such JSON.
    """
    try:
        content = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_finite_number, parse_float=_finite_number
        )
    except RecursionError:
        raise ValueError("too deep") from None
    if isinstance(content, dict | list):
        _refuse_deep(content, DEEPEST_JSON)
    if "\\u" in text:
        # Half a surrogate pair, which could be neither printed nor written.
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {shortened(name)} twice")
    return content


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _refuse_deep(content: Any, levels: int) -> None:
    if levels == 0:
        raise ValueError(f"more than {DEEPEST_JSON} lists and mappings inside each other")
    for value in content.values() if type(content) is dict else content:
        # Most are numbers and text, of which an index has millions: no call for each.
        if type(value) is dict or type(value) is list:
            _refuse_deep(value, levels - 1)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
