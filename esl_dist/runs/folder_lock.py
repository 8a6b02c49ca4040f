"""One start at a time in a folder: two that save into one would prune, mix and overwrite each other's files.

Each rank locks its byte of a file in the folder, for each may write there. A lock belongs to its process: it goes when
the process ends, however it ends, so a killed job can be started again as soon as all its ranks are gone. Hence record
locks and not `flock`, which the processes that read samples would inherit and might hold a little longer.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from esl_dist.errors import UserError
from esl_dist.files import make_folder
from esl_dist.ranks.collectives import broadcast_flags, is_main, rank, wait_for_all, warn
from esl_dist.runs.layout import LOCK


def lock_folder(folder: Path, setting: str) -> None:
    """Keep `folder`, which is made if need be, for this job as long as one of its ranks lives; called on every rank.

    Args:
        folder: the same on every rank.
        setting: the one that names the folder.

    Raises:
        UserError: on every rank, if ranks of another start live.
    """
    if not all(broadcast_flags([not is_main() or _lock_whole(folder)])):
        raise UserError(
            f"{folder}: another start is at work in this folder; wait for its end or stop it, or choose another "
            f"{setting}"
        )
    if not is_main():
        # As rank 0, below: never closed.
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, folder, length=1, start=rank())
    wait_for_all()


def _lock_whole(folder: Path) -> bool:
    """Say whether nobody has a lock; rank 0 then has its own, and no other start can come between."""
    make_folder(folder)
    # Never closed, for that would give the lock back: an interrupted training may still be writing a checkpoint.
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    if not _lock(descriptor, folder, length=0, start=0):
        os.close(descriptor)
        return False
    with suppress(OSError):
        # Where there are no locks, there is none to give back.
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 0, 1)
    return True


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def _lock(descriptor: int, folder: Path, length: int, start: int) -> bool:
    """Lock some bytes, 0 for all that follow; says whether no other process has a lock on one of them."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(folder / LOCK)) from error
        warn(
            f"{folder / LOCK}: this file system knows no locks ({error.strerror}); make sure that no other start works "
            "in this folder"
        )
    return True
