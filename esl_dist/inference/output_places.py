"""Where results may be written: not over what a program reads, nor over what is no result, and only where files can be.

All of this is checked before anything is computed. Each function takes a setting and its value, where None is nothing,
and raises a UserError that names the setting.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX, read_json, why_not_writable
from esl_dist.runs.layout import LOCK, MANIFEST, RUN_CONFIG, UNFINISHED
from esl_dist.urls import is_url

PREDICTIONS = "predictions.json"
"""In a folder of predictions of one's own pictures: what they were made with."""

SCORES = {"iou", "snapshots"}
"""Keys of which a JSON file of scores has one: those of one evaluation, or those of a run."""


def refuse_among_inputs(setting: str, place: str | None, inputs: Iterable[tuple[str, str | None]]) -> None:
    """Refuse to write what is read, as settings name it: a file, or into a folder of shards or of checkpoints.

    Elsewhere in a run's folder, scores/ say, there is room for results.
    """
    for read, value in inputs:
        if place is None or value is None or is_url(value):
            continue
        if _is_part_of(Path(place).resolve(), Path(value).resolve()):
            how = "is" if Path(place).resolve() == Path(value).resolve() else "lies in"
            raise UserError(f"{setting}={place} {how} {read}={value}, which is read; choose another place")


def _is_part_of(place: Path, read: Path) -> bool:
    if (read / MANIFEST).exists() and read.parent.name == "checkpoints":
        read = read.parent.parent
    elif read.is_file() or (read / INDEX_NAME).exists() or (read.exists() and not (read / RUN_CONFIG).exists()):
        return place.is_relative_to(read)
    # A run, which may be yet to come.
    return place in (read, read / RUN_CONFIG) or place.is_relative_to(read / "checkpoints")


def refuse_in_each_other(setting: str, place: str | None, other: str, other_place: str | None) -> None:
    """Refuse two results one of which would lie inside the other."""
    if place is not None and other_place is not None:
        one, two = Path(place).resolve(), Path(other_place).resolve()
        if one.is_relative_to(two) or two.is_relative_to(one):
            both = f"{setting}={place} and {other}={other_place}"
            raise UserError(f"{both} cannot lie inside each other; choose another place for one of them")


def refuse_replacing(setting: str, file: str | Path | None, is_own: Callable[[Path], bool], otherwise: str) -> None:
    """Refuse to replace a file of another kind; an empty one is nothing.

    Args:
        setting: that names the file.
        file: where a result goes; None: nowhere.
        is_own: whether a file that is there is a result of the kind.
        otherwise: what is said of one that is none, such as `holds no scores`.
    """
    path = Path(file or "")
    if file is None or not path.exists() or (path.is_file() and (path.stat().st_size == 0 or is_own(path))):
        return
    raise UserError(
        f"{setting}={file}: exists and {otherwise}, so it is not replaced; choose another name or delete it"
    )


def holds_scores(file: Path) -> bool:
    """Say whether a file is one of scores."""
    with open(file, "rb") as opened:
        # What else it may be is perhaps large.
        start = opened.read(1)
    try:
        return start == b"{" and not SCORES.isdisjoint(read_json(file))
    except UserError:
        return False


def refuse_other_use(setting: str, folder: Path) -> None:
    """Refuse a folder of pseudo-labels, finished or not, that holds something else."""
    # A kill may have left a job's shards, or half a file, without the rest.
    _refuse_others(setting, folder, (INDEX_NAME, UNFINISHED), "shard-")


def refuse_other_predictions(setting: str, folder: Path) -> None:
    """Refuse a folder of predictions of one's own pictures that holds something else."""
    _refuse_others(setting, folder, (PREDICTIONS,), PREDICTIONS)


def _refuse_others(setting: str, folder: Path, signs: Iterable[str], beginning: str) -> None:
    """Refuse a folder with none of the names `signs` in it that holds more than a lock, half files and `beginning`…"""
    if not folder.is_dir() or any((folder / sign).exists() for sign in signs):
        return
    for name in sorted(one.name for one in folder.iterdir()):
        if name != LOCK and not name.startswith(beginning) and not name.endswith(PARTIAL_SUFFIX):
            raise UserError(f"{setting}={folder}: exists and holds other files ({name!r}); choose a folder of its own")


def is_writable(folder: Path) -> bool:
    """Say whether files can be written into a folder, which need not be there yet; one is, for a moment."""
    return why_not_writable(folder) is None
