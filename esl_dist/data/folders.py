"""A folder of shards while it is packed: one packing at a time, and valid at any moment, whatever kills it.

New shards are written beside the old ones under names of their own. Their index then takes the old one's place by one
rename, which is the moment of the change; only after it do the old shards go and the new ones get the usual names, by
links, with an index for these. A packing that was killed after the rename is finished by the next one.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from esl_dist.data.shards import INDEX_NAME, ShardIndex, read_index, shard_name, write_index
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX, fsync_folder, make_folder, whole_file

LOCK = ".lock"
REPLACEMENT = "repacked-"
"""How the names of shards begin that are to take the place of others."""
OUR_TARS = ("shard-*.tar", f"{REPLACEMENT}*.tar")


def replacement_name(position: int) -> str:
    """Return the file name that the new shard number `position` has until the old ones are gone."""
    return f"{REPLACEMENT}{position:06d}.tar"


@contextmanager
def sole_packing(folder: Path) -> Iterator[None]:
    """Make `folder`, unless it is there, and keep other packings out; it is removed again if nothing was written.

    Raises:
        UserError: it is a file, or another packing is at work in it.
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
        except OSError:
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise UserError(
                f"{folder}: another packing is at work in this folder; wait for its end or stop it, or choose another "
                "output"
            ) from None
        except OSError as error:
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


def tidy(folder: Path) -> None:
    """Finish or clear away what a killed packing left, so that the folder holds what its index names and no more.

    Raises:
        UserError: its index is damaged or another's.
    """
    _remove(folder.glob(f"*.tar{PARTIAL_SUFFIX}"))
    _remove(folder.glob(f"{INDEX_NAME}{PARTIAL_SUFFIX}"))
    if not (folder / INDEX_NAME).exists():
        # Whole shards of an unfinished first packing are written over; what is left of them goes when it is done.
        _remove(folder.glob(f"{REPLACEMENT}*.tar"))
        return
    index = read_index(folder)
    if any(shard.name.startswith(REPLACEMENT) for shard in index.shards):
        index = settle(folder, index)
    remove_surplus(folder, index)


def settle(folder: Path, index: ShardIndex) -> ShardIndex:
    """Give replacements, which the folder's `index` names already, the usual names; returns the index with these.

    Every step may be the last before a kill: the same call then does the rest.
    """
    final = tuple(replace(shard, name=shard_name(position)) for position, shard in enumerate(index.shards))
    _remove(folder.glob("shard-*.tar"))
    for old, new in zip(index.shards, final, strict=True):
        _link(folder / old.name, folder / new.name)
    fsync_folder(folder)
    settled = replace(index, shards=final)
    write_index(folder, settled)
    remove_surplus(folder, settled)
    return settled


def remove_surplus(folder: Path, index: ShardIndex) -> None:
    """Remove tars of other packings that the index does not name."""
    named = {shard.name for shard in index.shards}
    _remove(path for pattern in OUR_TARS for path in folder.glob(pattern) if path.name not in named)


def _link(existing: Path, new: Path) -> None:
    try:
        os.link(existing, new)
    except OSError:
        # Some file systems have no links.
        with open(existing, "rb") as source, whole_file(new) as file:
            shutil.copyfileobj(source, file)


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()
