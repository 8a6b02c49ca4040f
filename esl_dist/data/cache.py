"""A folder of fetched files that all processes of a machine share: each fetched once, whole or not there, in a limit.

A file is filled beside its place by who holds the kernel's lock on it, and renamed; the others wait. A lock goes with
its process, so a kill leaves nothing that has to be cleared away but bytes, over which the next one begins anew. Names
are digests: what has a file's name has its bytes, whoever fetched it for which run.

Room is made by whoever needs it, under one lock for the folder. Processes that know what comes next say so
(`Notice`), and what is needed last, or by nobody, goes first; nothing goes for what is needed later than itself. A file
that was opened stays readable when its name is gone.
"""

import errno
import fcntl
import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from esl_dist.data.remote import tell
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX

NAMES = re.compile(r"[0-9a-f]{64}(\.partial)?")
"""Of files that are the cache's; others in its folder are left alone."""
NOTICE = "needed-"
LOCK = ".lock"
NOW = -1
"""When a file is needed that is waited for; else the batches until then."""
LOOK_SECONDS = 0.05
TELL_SECONDS = 10.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(Exception):
    """All that is in the cache is needed sooner than what is to be fetched, or is being filled."""


@dataclass(frozen=True)
class Cache:
    """Where fetched files are kept.

    Attributes:
        folder: on a disk of this machine.
        limit: bytes of all its files together.
        timeout_minutes: how long another process may fetch without getting on.
        progress: called while this process waits or fetches, by any of its threads: it gets on, and others may know.
    """

    folder: Path
    limit: int
    timeout_minutes: float
    progress: Callable[[], None] = lambda: None

    def note(self) -> None:
        """Note that this process waits or fetches, where it is heard."""
        note(self.progress)


_HEARD = list[Callable[[], None]]()


def note_by(progress: Callable[[], None]) -> None:
    """Have this process, one that was forked, note by `progress`: its program does not hear what was given before."""
    _HEARD.append(progress)


def note(progress: Callable[[], None]) -> None:
    """Note that this process gets on: by `progress`, or in one that was forked by what is heard."""
    (_HEARD[-1] if _HEARD else progress)()


def cache_of(folder: str | None, gigabytes: float, timeout_minutes: float, note: Callable[[], None]) -> Cache:
    """Return the cache that the settings describe; without a folder, in the user's own (XDG base directories)."""
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = Path(users, "esl-dist/shards") if folder is None else Path(folder)
    return Cache(place, int(gigabytes * 1e9), timeout_minutes, note)


def opened(cache: Cache, name: str, size: int, fill: Callable[[int], None], url: str) -> int:
    """Return a descriptor of the file `name`, fetched by this process or another if it is not there; close it.

    Args:
        cache: where it is kept.
        name: 64 hexadecimal digits that no file of other bytes has.
        size: its bytes.
        fill: writes them to a descriptor; whoever waits for it looks at the time of the file's last change.
        url: where they come from, for messages.

    Raises:
        UserError: the folder cannot be used, another process holds the file and does not get on, or what `fill` raises.
    """
    with _usable(cache.folder):
        waiting = _Waiting(cache, name, url)
        while True:
            descriptor = _present(cache, name, size)
            if descriptor is None:
                with suppress(NoRoomError):
                    descriptor = _fetched(cache, name, size, fill, NOW)
            if descriptor is not None:
                return descriptor
            waiting.look()


def fetch_ahead(cache: Cache, name: str, size: int, fill: Callable[[int], None], need: int) -> bool:
    """Fetch a file that is needed in `need` batches, unless another process does; returns whether it is there.

    Raises:
        NoRoomError: there is none until then.
        UserError: as `opened`.
    """
    with _usable(cache.folder):
        descriptor = _present(cache, name, size)
        if descriptor is None:
            descriptor = _fetched(cache, name, size, fill, need)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None


def is_there(cache: Cache, name: str) -> bool:
    """Say whether a file has been fetched, without using it."""
    return (cache.folder / name).exists()


def forget(cache: Cache, name: str) -> None:
    """Remove a file that turned out to be damaged."""
    with _usable(cache.folder):
        (cache.folder / name).unlink(missing_ok=True)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    if folder.parts[0] == "~":
        raise UserError("cache.folder: this user has no home folder for a cache of shards; give one as cache.folder=…")
    try:
        # What lies in it is read as it is: nobody else writes there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno is None:
            # Not the system's, but what `fill` says of a file far away.
            raise
        if error.errno in DISK_FULL:
            remedy = "free some, lower cache.gigabytes, or choose another disk as cache.folder=…"
        else:
            remedy = "choose a folder on a local disk as cache.folder=…"
        raise UserError(f"{folder}: cannot be used as a cache of shards ({error.strerror}); {remedy}") from error


def _present(cache: Cache, name: str, size: int) -> int | None:
    try:
        descriptor = os.open(cache.folder / name, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == size:
        with suppress(OSError):
            # What was used last goes last.
            os.utime(cache.folder / name)
        return descriptor
    os.close(descriptor)
    forget(cache, name)
    return None


def _fetched(cache: Cache, name: str, size: int, fill: Callable[[int], None], need: int) -> int | None:
    """Fetch a file; None where another process does, or just did."""
    final, partial = cache.folder / name, cache.folder / (name + PARTIAL_SUFFIX)
    descriptor = _locked(partial)
    if descriptor is None:
        return None
    is_whole = False
    try:
        # Another may have fetched it between the look for it and the lock.
        if not final.exists():
            _take_room(cache, descriptor, size, need)
            fill(descriptor)
            os.fsync(descriptor)
            with _whole_folder(cache.folder):
                # Who lists the folder sees one of the names.
                os.rename(partial, final)
            is_whole = True
    finally:
        if not is_whole:
            partial.unlink(missing_ok=True)
            os.close(descriptor)
    if not is_whole:
        return None
    # Not by closing alone: a process that was forked meanwhile has it open, too.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return descriptor


def _locked(path: Path) -> int | None:
    """Open a file, empty, with the lock on it; None where another process has that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
        # The one who had it may have renamed or removed it in between.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    return True


class _Waiting:
    """The wait for a file that another process fetches, or for room that others take."""

    def __init__(self, cache: Cache, name: str, url: str) -> None:
        self.cache, self.name, self.url = cache, name + PARTIAL_SUFFIX, url
        self.told = self.got_on = time.monotonic()
        self.filled = dict[str, int]()

    def look(self) -> None:
        """Wait a moment, and tell of it every ten seconds."""
        time.sleep(LOOK_SECONDS)
        self.cache.note()
        now, before, self.filled = time.monotonic(), self.filled, _being_filled(self.cache.folder)
        if self.name in self.filled:
            # What others do is not waited for.
            self.filled = {self.name: self.filled[self.name]}
            problem = "another process of this machine fetches it into"
        else:
            problem = "other processes of this machine take the room for it in"
        if self.filled != before:
            self.got_on = now
        if now - self.got_on > 60 * self.cache.timeout_minutes:
            raise UserError(
                f"{self.url}: {problem} {self.cache.folder} and got nothing for "
                f"{self.cache.timeout_minutes:g} minutes; end them, or choose another cache.folder"
            )
        if now - self.told > TELL_SECONDS:
            self.told = now
            tell(f"{self.url}: {problem} {self.cache.folder}; waiting for that")


def _being_filled(folder: Path) -> dict[str, int]:
    """Return when the files were last changed, by name, that have got room and are not whole yet."""
    changed = dict[str, int]()
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_size > 0:
                changed[path.name] = status.st_mtime_ns
    return changed


class _File(NamedTuple):
    path: Path
    size: int
    used: float
    need: float


def _take_room(cache: Cache, descriptor: int, size: int, need: int) -> None:
    """Take room for a file that is about to be filled, from those that are needed later than in `need` batches."""
    with _whole_folder(cache.folder):
        # A file that is being filled has its full size from the start.
        files = _files(cache.folder)
        excess = sum(file.size for file in files) + size - cache.limit
        others = [file for file in files if file.need > need and file.path.suffix != PARTIAL_SUFFIX]
        going = deque(sorted(others, key=lambda one: (-one.need, one.used)))
        if sum(file.size for file in going) < excess:
            raise NoRoomError
        while excess > 0:
            excess -= _gone(going)
        while not _reserved(descriptor, size):
            # The disk holds less than the limit allows.
            if not going:
                raise NoRoomError if _being_filled(cache.folder) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _gone(going)


def _gone(going: deque[_File]) -> int:
    """Remove the first file; returns its bytes."""
    file = going.popleft()
    file.path.unlink(missing_ok=True)
    return file.size


def _reserved(descriptor: int, size: int) -> bool:
    """Give an empty file its size and the room for it on the disk; returns whether there was enough."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        if error.errno in DISK_FULL:
            return False
        raise
    return True


def _files(folder: Path) -> list[_File]:
    needs, files = _needs(folder), list[_File]()
    for entry in os.scandir(folder):
        if NAMES.fullmatch(entry.name):
            with suppress(FileNotFoundError):
                if entry.name.endswith(PARTIAL_SUFFIX):
                    _remove_left(Path(entry.path))
                status = entry.stat(follow_symlinks=False)
                need = needs.get(entry.name, math.inf)
                files.append(_File(Path(entry.path), status.st_size, status.st_mtime, need))
    return files


def _remove_left(partial: Path) -> None:
    """Remove what a killed process left; what is being filled is locked, and stays."""
    if (descriptor := _locked(partial)) is not None:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _needs(folder: Path) -> dict[str, float]:
    """Return in how many batches files are needed, by what running processes say; called with the folder's lock."""
    needs: dict[str, float] = {}
    for path in folder.glob(f"{NOTICE}*"):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if _lock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB):
                # Its process has ended.
                path.unlink(missing_ok=True)
                continue
            with suppress(ValueError, AttributeError):
                for name, need in json.loads(file.read()).items():
                    needs[name] = min(float(need), needs.get(name, math.inf))
    return needs


class Notice:
    """What one process says that it will need; gone with it."""

    def __init__(self, cache: Cache) -> None:
        """Put up an empty one."""
        self.path = cache.folder / f"{NOTICE}{uuid4().hex}"
        self.descriptor: int | None = None
        self.say({})

    def say(self, needs: Mapping[str, int]) -> None:
        """Say which files are needed in how many batches, instead of what was said before.

        Raises:
            UserError: the folder cannot be used.
        """
        with _usable(self.path.parent), _whole_folder(self.path.parent):
            if self.descriptor is not None and not self.path.exists():
                # Somebody emptied the folder.
                os.close(self.descriptor)
                self.descriptor = None
            if self.descriptor is None:
                self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
                _lock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(dict(needs)).encode(), 0)
