"""One start at a time in a folder: two that save into one would prune, mix and overwrite each other's files.

Rank 0 locks a file in the folder. The lock belongs to its process: it goes when the process ends, however it ends, so a
killed job can be started again at once. Hence a record lock and not `flock`, which the processes that read samples
would inherit and might hold a little longer.
"""

import fcntl
import os
import sys
from pathlib import Path

from esl_dist.engine.distributed import from_main, is_main
from esl_dist.errors import UserError
from esl_dist.files import make_folder

LOCK = ".lock"


def claim(folder: Path, setting: str) -> None:
    """Keep `folder`, which is made if need be, for this job as long as rank 0 lives; called on every rank.

    Args:
        folder: the same on every rank.
        setting: the one that names the folder.

    Raises:
        UserError: on every rank, if another start keeps it.
    """
    if not all(from_main([not is_main() or _lock(folder)])):
        raise UserError(
            f"{folder}: another start is at work in this folder; wait for its end or stop it, or choose another "
            f"{setting}"
        )


def _lock(folder: Path) -> bool:
    """Say whether nobody else has the lock; this process has it then, until it ends."""
    make_folder(folder)
    # Never closed, for that would give the lock back: an interrupted training may still be writing a checkpoint.
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return False
    except OSError as error:
        print(
            f"warning: {folder / LOCK}: this file system knows no locks ({error.strerror}); make sure that no other "
            "start works in this folder",
            file=sys.stderr,
        )
    return True
