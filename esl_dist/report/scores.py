"""The scores that a report shows: JSON files of evaluations, and which run each is of."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from esl_dist.checked import Content, read_content
from esl_dist.errors import UserError
from esl_dist.reporting.scores import scores_from
from esl_dist.runs.validations import VALIDATIONS, read_validations

REMEDY = "score again, or leave it out"
TARGET_STATISTICS = "target_statistics"
"""In the name of files of scores with statistics of the target, where an older one does not say it inside."""
CHOSEN = "best step, chosen on these pictures"
"""In the title of scores that are better than those of pictures that had no say in the step."""
UNLIKE = (
    "batch-norm statistics of another domain",
    "only one is the best step, chosen on these pictures",
    "scored at another step",
)
"""What else than the method may make a difference; in the order of `_differences`."""


@dataclass(frozen=True)
class Row:
    """One line of scores.

    Attributes:
        title: what it is called in tables.
        file: where it was read.
        miou, miou_over, iou, accuracy: as `reporting.scores.scores_of` makes them.
        confusion: pixels by label and prediction; None where the file does not say.
        checkpoint: the network that was scored, as the file says it; None where it does not.
        is_ensemble: whether several were, as one.
        step: steps that it was trained; None where it is not known.
        data: data set and split; None where the file does not say.
        fingerprint: that of the pictures; None where the file does not say.
        anew: whether batch-norm statistics were estimated anew; None where the file does not say.
        is_chosen: whether the step is the best of several on the pictures themselves.
        run: place of its run among those of the report.
        control: place of the row it is to be held against.
        unlike: what sets the two apart besides their runs.
    """

    title: str
    file: str
    miou: float | None
    miou_over: dict[str, float | None]
    iou: dict[str, float | None]
    accuracy: float | None
    confusion: list[list[int]] | None = None
    checkpoint: str | None = None
    is_ensemble: bool = False
    step: int | None = None
    data: str | None = None
    fingerprint: str | None = None
    anew: bool | None = None
    is_chosen: bool = False
    run: int | None = None
    control: int | None = None
    unlike: list[str] = field(default_factory=list)


def experiments_of(run: Path) -> Path:
    """Return the folder of experiments that a run lies in."""
    return run.resolve().parent.parent


def places_of(path: str, runs: Sequence[Path], experiments: Path) -> list[int]:
    """Return the place of the run that a path names or lies in; none, or several where it cannot be told which.

    Args:
        path: as a file names it; its experiments may have been moved since.
        runs: folders of runs, among them one of each seed, say, of the same name.
        experiments: folder of experiments of whatever names the path; of several moved runs the one in it is meant.
    """
    inside = [place for place, run in enumerate(runs) if _lies_in(path, run)]
    moved = [place for place, run in enumerate(runs) if points_to(path, run)]
    beside = [place for place in moved if experiments_of(runs[place]) == experiments.resolve()]
    return inside[:1] or (beside[:1] if len(moved) > 1 and beside else moved)


def _lies_in(path: str, run: Path) -> bool:
    return Path(path).resolve().is_relative_to(run.resolve())


def points_to(path: str, run: Path) -> bool:
    """Say whether a path that a file names is a run, or lies in it; also where the experiments were moved since."""
    if _lies_in(path, run):
        return True
    parts, own = Path(path).parts, ("snapshots", run.resolve().name)
    moved = own in itertools.pairwise(parts)
    return moved and not Path(path).exists() and run.resolve().parent.name == "snapshots"


def rows_of_run(run: Path, number: int) -> tuple[list[Row], list[str]]:
    """Return the rows of a run that lie in its folder, or in scores/ beside its snapshots/, and what cannot be read."""
    rows, problems = [], []
    for file in sorted({*run.glob("scores/*.json"), *experiments_of(run).glob("scores/*.json")}):
        try:
            row = read_row(file)
        except UserError as error:
            problems.append(str(error))
            continue
        is_its_own = file.is_relative_to(run) and row.checkpoint is None and not row.is_ensemble
        if is_its_own or (row.checkpoint is not None and points_to(row.checkpoint, run)):
            rows.append(replace(row, run=number))
    return rows, problems


def best_validation(run: Path, number: int) -> tuple[list[Row], list[str]]:
    """Return the best of a run's validations as a row, if it has any, and what cannot be read."""
    file = run / VALIDATIONS
    if not file.exists():
        return [], []
    try:
        made_with, figures = read_validations(file)
    except UserError as error:
        return [], [str(error)]
    found = {step: one.scores for step, one in figures.items() if one.scores is not None}
    if not found:
        return [], []
    step = max(sorted(found), key=lambda one: found[one].miou or 0.0)
    row = Row(f"{run.name}, validation, {CHOSEN}", str(file), **_shares(asdict(found[step])), step=step, run=number)
    return [replace(row, fingerprint=_text_or_none(made_with.get("data")), is_chosen=True)], []


def read_row(file: Path) -> Row:
    """Read the scores of one evaluation, or the best of those of all snapshots of a run.

    Raises:
        UserError: the file holds no scores.
    """
    content = read_content(file, REMEDY)
    if content.get("iou") is None and content.get("best") is not None:
        best = content.at("best")
        step = best.at("step").whole_number()
        return replace(_row(f"{file.stem}, {CHOSEN}", best, content), step=step, is_chosen=True)
    return _row(file.stem, content, content)


def _row(title: str, content: Content, whole: Content) -> Row:
    scores = scores_from(content)
    # One evaluation says it beside its scores, that of all snapshots in what they were made with.
    inner = whole.value.get("made_with")
    said, name, fingerprint = (
        (inner, "data_name", "data") if isinstance(inner, dict) else (whole.value, "data", "data_fingerprint")
    )
    return Row(
        title,
        str(whole.file),
        **_shares(scores),
        confusion=scores.get("confusion"),
        step=scores.get("step") if isinstance(scores.get("step"), int) else None,
        checkpoint=_text_or_none(whole.value.get("checkpoint")),
        is_ensemble="checkpoints" in whole.value,
        data=_text_or_none(said.get(name)),
        fingerprint=_text_or_none(said.get(fingerprint)),
        anew=said["statistics_from"] is not None if "statistics_from" in said else None,
    )


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _shares(scores: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"miou_over": {}, "accuracy": None}
    return {key: scores.get(key, empty.get(key)) for key in ("miou", "miou_over", "iou", "accuracy")}


def with_controls(rows: Iterable[Row], controls: dict[int, int], adapted: Collection[int]) -> list[Row]:
    """Return rows with their controls: of the control's rows the one scored likest, of several the last step's.

    A network that saw the target has statistics of it; one that did not has them where they were estimated anew, and
    is held against the former so, for else the statistics alone would look like a gain of the method.

    Args:
        rows: those of the report.
        controls: place of a run → place of the run that is its control.
        adapted: places of the runs whose networks saw the target.
    """
    rows = list(rows)
    found = []
    for row in rows:
        of_control = [
            place
            for place, other in enumerate(rows)
            if row.run in controls and other.run == controls[row.run] and pictures_of(other) == pictures_of(row)
        ]
        if not of_control:
            found.append(row)
            continue
        likest = min(of_control, key=lambda at: (*_differences(row, rows[at], adapted), -(rows[at].step or 0)))
        differences = _differences(row, rows[likest], adapted)
        unlike = [words for words, differs in zip(UNLIKE, differences, strict=False) if differs]
        found.append(replace(row, control=likest, unlike=unlike))
    return found


def pictures_of(row: Row) -> tuple[str, str]:
    """Return what tells the scored pictures from others; of files that do not say it, the name."""
    if row.fingerprint is not None:
        return "fingerprint", row.fingerprint
    return ("data", row.data) if row.data is not None else ("file", Path(row.file).stem)


def _differences(row: Row, other: Row, adapted: Collection[int]) -> tuple[bool, bool, bool, bool]:
    """Say in what two rows of the same pictures differ, the worst first."""
    of_target = [one.run in adapted or bool(one.anew) or TARGET_STATISTICS in one.title for one in (row, other)]
    # Of several steps the best may be any.
    is_any = None in (row.step, other.step) or row.is_chosen or other.is_chosen
    is_other_step = not is_any and row.step != other.step
    return of_target[0] != of_target[1], row.is_chosen != other.is_chosen, is_other_step, row.anew != other.anew
