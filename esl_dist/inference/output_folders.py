"""Where results may be written: not over what a program reads, nor over what is no result, and only where files can be.

All of it is found out before anything is computed.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX, read_json
from esl_dist.inference.unfinished import SCRATCH
from esl_dist.ranks.collectives import is_main
from esl_dist.runs.checkpoints import MANIFEST, RUN_CONFIG
from esl_dist.runs.folder_lock import LOCK

SCORES = ("iou", "snapshots")
"""Keys of which a JSON file of scores has one: those of one evaluation, or those of a run."""


def refuse_among_inputs(setting: str, place: str, inputs: Iterable[tuple[str, str | None]]) -> None:
    """Refuse to write what is read: a file, or into a folder of shards or of checkpoints.

    Elsewhere in a run's folder, scores/ say, there is room for results.

    Args:
        setting: the one that names the place.
        place: file or folder to be written.
        inputs: settings of what is read and their values; None: nothing.

    Raises:
        UserError: naming both settings.
    """
    resolved = Path(place).resolve()
    for read, value in inputs:
        if value is None:
            continue
        folders, files = _parts(Path(value).resolve())
        if resolved in files or any(folder in (resolved, *resolved.parents) for folder in folders):
            how = "is" if resolved == Path(value).resolve() else "lies in"
            raise UserError(f"{setting}={place} {how} {read}={value}, which is read; choose another place")


def _parts(path: Path) -> tuple[set[Path], set[Path]]:
    """Return folders nothing may be written into, and places nothing may be written as, to keep what is at `path`."""
    if (path / MANIFEST).exists() and path.parent.name == "checkpoints":
        path = path.parent.parent
    elif path.is_file() or (not (path / RUN_CONFIG).exists() and path.exists()):
        return {path}, set()
    return {path / "checkpoints"}, {path, path / RUN_CONFIG}


def refuse_replacing(setting: str, file: Path) -> None:
    """Refuse to replace anything but scores.

    Raises:
        UserError: something else is there.
    """
    if file.exists() and not _holds_scores(file):
        raise UserError(
            f"{setting}={file}: is there and holds no scores, so it is not replaced; choose another name or delete it"
        )


def _holds_scores(file: Path) -> bool:
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        # What else it may be is perhaps large.
        start = opened.read(100).lstrip()
    if not start.startswith(b"{"):
        return not start and file.stat().st_size == 0
    try:
        content = read_json(file)
    except UserError:
        return False
    return any(key in content for key in SCORES)


def refuse_other_use(setting: str, folder: Path) -> None:
    """Refuse a folder of a job's own that holds something else.

    Raises:
        UserError: it is neither empty nor, finished or not, such a job's.
    """
    if not folder.is_dir() or (folder / INDEX_NAME).exists() or (folder / SCRATCH).exists():
        return
    # A kill may have left a job's shards, or half a file, without the rest.
    other = sorted(
        one.name
        for one in folder.iterdir()
        if one.name != LOCK and not one.name.startswith("shard-") and not one.name.endswith(PARTIAL_SUFFIX)
    )
    if other:
        raise UserError(
            f"{setting}={folder}: is there and holds other files ({other[0]!r}); choose a folder of its own"
        )


def refuse_unwritable(folder: Path, what: str, setting: str) -> None:
    """Make sure, before anything is computed for it, that files can be written into a folder; on the main rank.

    Raises:
        UserError: they cannot; the message begins with `what` and names the setting that would change the folder.
    """
    if is_main() and not is_writable(folder):
        raise UserError(f"{what}: nothing can be written into {folder.absolute()}; choose another place as {setting}=…")


def is_writable(folder: Path) -> bool:
    """Say whether files can be written into a folder, which need not be there yet; one is, for a moment."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            return True
    except OSError:
        return False
