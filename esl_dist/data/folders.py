"""A folder of shards while it is packed: one packing at a time, and valid at any moment, whatever kills it.

New shards are written beside the old ones under names of their own. Their index then takes the old one's place by one
rename, which is the moment of the change; only after it do the old shards go and the new ones get the usual names, by
links, with an index for these. A packing that was killed after the rename is finished by the next one.
"""

import errno
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from esl_dist.data.shard_index import ShardIndex, write_index
from esl_dist.data.shards import ShardReader, broken_shards, shard_name
from esl_dist.errors import UserError
from esl_dist.files import fsync_folder, make_folder, whole_file

LOCK = ".lock"
REPLACEMENT = "repacked-"
"""How the names of shards begin that are to take the place of others."""
SHARDS = re.compile(r"shard-\d{6,}\.tar")
UNFINISHED = re.compile(r"repacked-\d{6,}\.tar|(repacked|shard)-\d{6,}\.tar\.partial|index\.json\.partial")
"""Names that only an unfinished packing leaves."""
ONLY_READ = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What is said where a folder may only be read."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that know no locks."""


def replacement_name(position: int) -> str:
    """Return the file name that the new shard number `position` has until the old ones are gone."""
    return f"{REPLACEMENT}{position:06d}.tar"


@contextmanager
def sole_packing(folder: Path) -> Iterator[None]:
    """Make `folder`, unless it is there, and keep other packings out; it is removed again if nothing was written.

    Raises:
        UserError: it is a file, its lock cannot be made, or another packing is at work in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; expected a folder for shards, or a place where there is nothing yet")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    make_folder(folder)
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
        for one in made:
            with suppress(OSError):
                one.rmdir()


def _lock(folder: Path) -> int | None:
    """Lock the folder's lock file; None where the folder may only be read, so that nobody packs into it."""
    path = folder / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in ONLY_READ:
                return None
            raise _without_lock(path, error) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise _without_lock(path, error) from None
            print(
                f"warning: {path}: this file system knows no locks ({error.strerror}); make sure that no other packing "
                "works in this folder",
                file=sys.stderr,
            )
        # The one who had it may have removed it in between: then this is no longer the file that others would lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _without_lock(path: Path, error: OSError) -> UserError:
    if isinstance(error, BlockingIOError | PermissionError):
        return UserError(
            f"{path.parent}: another packing is at work in this folder; wait for its end or stop it, or choose another "
            "output"
        )
    return UserError(
        f"{path}: cannot be created or locked, which keeps a second packing out ({error.strerror}); remove what is in "
        "its place or free some space, then start again"
    )


def finished(folder: Path, index: ShardIndex) -> ShardIndex:
    """Return `index`, or, where a packing was killed after its moment of change, what is left to do and its index.

    Nothing is touched where a replacement is not there with its size: the old shards may be the only ones.
    """
    can_settle = names_replacements(index) and not any(broken_shards(ShardReader(folder, index)))
    return settle(folder, index) if can_settle else index


def names_replacements(index: ShardIndex) -> bool:
    """Say whether an index names shards that have not taken the place of the old ones yet."""
    return bool(index.shards) and all(shard.name.startswith(REPLACEMENT) for shard in index.shards)


def settle(folder: Path, index: ShardIndex) -> ShardIndex:
    """Give the shards that the folder's `index` names the usual names, and remove what it does not name.

    Every step may be the last before a kill: the same call then does the rest. Returns the index with these names.
    """
    usual = tuple(replace(shard, name=shard_name(position)) for position, shard in enumerate(index.shards))
    if names_replacements(index):
        remove_leftovers(folder, index, SHARDS)
        for old, new in zip(index.shards, usual, strict=True):
            _link(folder / old.name, folder / new.name)
        fsync_folder(folder)
        index = replace(index, shards=usual)
        write_index(folder, index)
    remove_leftovers(folder, index, SHARDS)
    remove_leftovers(folder, index)
    return index


def _link(existing: Path, new: Path) -> None:
    try:
        os.link(existing, new)
    except OSError:
        # Some file systems have no links.
        with open(existing, "rb") as source, whole_file(new) as file:
            shutil.copyfileobj(source, file)


def remove_leftovers(folder: Path, index: ShardIndex, names: re.Pattern[str] = UNFINISHED) -> None:
    """Remove what a packing that did not end left, but what `index` names; what others put here has other names."""
    kept = {shard.name for shard in index.shards}
    for path in list(folder.iterdir()):
        if names.fullmatch(path.name) and path.name not in kept and path.is_file():
            try:
                path.unlink()
            except OSError as error:
                # It hurts nobody where the folder may only be read.
                if error.errno not in ONLY_READ:
                    raise
