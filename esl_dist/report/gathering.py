"""Everything that a report shows, as one plain structure that JSON holds."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esl_dist.config import Report
from esl_dist.data.labels import ClassSet
from esl_dist.endings import now
from esl_dist.errors import UserError
from esl_dist.report.curves import read_curves, thinned
from esl_dist.report.rounds import told_of_round
from esl_dist.report.runs import RunFolder, controls_of, is_plain, open_run, starts_of, told_of_run, unclear_starts
from esl_dist.report.scores import Row, places_of, read_row, rows_of_run, with_controls
from esl_dist.runs.run_record import versions
from esl_dist.urls import is_url, without_secrets


def open_runs(config: Report) -> list[RunFolder]:
    """Open the runs that the settings name.

    Raises:
        UserError: one is no run.
    """
    return [open_run(Path(one)) for one in config.runs if not is_scores(one)]


def gathered(config: Report, runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Read what the settings name, but for the gallery, which `pictures` makes.

    Raises:
        UserError: what is named there cannot be read. What a report finds by itself is noted on the page instead.
    """
    rows, notes = _rows(config, runs)
    rounds, class_sets = _rounds(config, runs, notes)
    class_sets += [run.classes for run in runs if run.classes is not None]
    controls = controls_of(runs)
    notes += unclear_starts(runs)
    adapted = {place for place, run in enumerate(runs) if not is_plain(run)}
    rows = with_controls(rows, {place: other for place, (other, _) in controls.items()}, adapted)
    _say_of_rounds(rounds, runs)
    return {
        "made": {
            "at": now().isoformat(timespec="seconds"),
            "command": [without_secrets(word) for word in sys.argv],
            "versions": versions(),
        },
        "notes": notes,
        "classes": _classes(class_sets, rows),
        "runs": _runs(runs, controls, rounds),
        # JavaScript puts keys that look like whole numbers before all others.
        "rows": [{**asdict(row), "names": list(row.iou)} for row in rows],
        "curves": _curves(runs, notes),
        "rounds": rounds,
    }


def is_scores(word: str) -> bool:
    """Say whether one of the runs is a file of scores, not a run's folder."""
    return Path(word).is_file()


def _rows(config: Report, runs: Sequence[RunFolder]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    notes: list[str] = []
    for number, run in enumerate(runs):
        own, problems = rows_of_run(run.folder, number)
        rows += own
        notes += problems
        if not own:
            notes.append(
                f"{run.folder}: no scores; make them with esl-dist evaluate checkpoint={run.folder} data.path=…"
            )
    for file in [*filter(is_scores, config.runs), *config.scores]:
        row = read_row(Path(file))
        if Path(file).resolve() in {Path(one.file).resolve() for one in rows}:
            continue
        experiments = Path(file).resolve().parent.parent
        of = places_of(row.checkpoint, [run.folder for run in runs], experiments) if row.checkpoint else []
        if len(of) > 1:
            notes.append(f"{file}: its {row.checkpoint} is no longer there, and may be that of {len(of)} of the runs")
        rows.append(replace(row, run=of[0] if len(of) == 1 else None))
    return _with_own_titles(rows), notes


def _with_own_titles(rows: Sequence[Row]) -> list[Row]:
    """Tell rows of one title apart by the folder they lie in."""
    counts = Counter(row.title for row in rows)
    return [
        replace(row, title=f"{Path(row.file).resolve().parent.parent.name}/{row.title}")
        if counts[row.title] > 1
        else row
        for row in rows
    ]


def _rounds(config: Report, runs: Sequence[RunFolder], notes: list[str]) -> tuple[list[dict[str, Any]], list[ClassSet]]:
    rounds, class_sets = [], []
    found = [run.config.pseudo_labels for run in runs if run.config.pseudo_labels is not None]
    for place in dict.fromkeys([*config.pseudo_labels, *found]):
        if is_url(place):
            notes.append(f"{without_secrets(place)}: pseudo-labels far away are not looked into; fetch the folder")
            continue
        try:
            told, classes = told_of_round(Path(place))
        except UserError as error:
            if place in config.pseudo_labels:
                raise
            notes.append(str(error))
            continue
        rounds.append(told)
        class_sets.append(classes)
    return rounds, class_sets


def _say_of_rounds(rounds: Sequence[dict[str, Any]], runs: Sequence[RunFolder]) -> None:
    names = _names(runs)
    for told in rounds:
        labels = Path(told["folder"]).resolve()
        told["used_by"] = [
            name
            for name, run in zip(names, runs, strict=True)
            if run.config.pseudo_labels is not None
            and not is_url(run.config.pseudo_labels)
            and Path(run.config.pseudo_labels).resolve() == labels
        ]


def _names(runs: Sequence[RunFolder]) -> list[str]:
    counts = Counter(run.config.name for run in runs)
    return [
        str(run.config.name)
        if counts[run.config.name] == 1
        else f"{run.folder.resolve().parent.parent.name}/{run.config.name}"
        for run in runs
    ]


def _runs(
    runs: Sequence[RunFolder], controls: dict[int, tuple[int, str]], rounds: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    starts, names, told = starts_of(runs), _names(runs), []
    for place, run in enumerate(runs):
        control, kind = controls.get(place, (None, None))
        used = [number for number, one in enumerate(rounds) if names[place] in one["used_by"]]
        titles = {"name": names[place], "start": starts.get(place), "control": control, "control_kind": kind}
        told.append(told_of_run(run, {**titles, "round": used[0] if used else None}))
    return told


def _classes(class_sets: Sequence[ClassSet], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return names and colours of all classes; grey where no class set says."""
    colors = {item.name: list(item.color) for classes in reversed(class_sets) for item in classes}
    names = dict.fromkeys([item.name for classes in class_sets[-1:] for item in classes])
    names |= dict.fromkeys(name for row in rows for name in row.iou)
    names |= dict.fromkeys(colors)
    return [{"name": name, "color": colors.get(name, [128, 128, 128])} for name in names]


def _curves(runs: Sequence[RunFolder], notes: list[str]) -> list[dict[str, Any]]:
    told = []
    for run in runs:
        try:
            curves, origin, problems = read_curves(run.logs)
            notes += problems
        except UserError as error:
            notes.append(str(error))
            curves, origin = {}, ""
        points = {tag: thinned(one) for tag, one in sorted(curves.items())}
        told.append({"origin": origin, "points": points, "all": {tag: len(one) for tag, one in curves.items()}})
    return told
