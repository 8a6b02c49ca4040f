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
from esl_dist.report.runs import (
    RunFolder,
    controls_of,
    elsewhere,
    is_plain,
    open_run,
    starts_of,
    told_of_run,
    unclear_starts,
)
from esl_dist.report.scores import Row, best_validation, pictures_of, places_of, read_row, rows_of_run, with_controls
from esl_dist.runs.layout import scoring_command
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
        "rows": [{**asdict(row), "names": list(row.iou), "pictures": ": ".join(pictures_of(row))} for row in rows],
        "curves": _curves(runs, notes),
        "rounds": rounds,
    }


def is_scores(word: str) -> bool:
    """Say whether one of the runs is a file of scores, not a run's folder."""
    return Path(word).is_file()


def _rows(config: Report, runs: Sequence[RunFolder]) -> tuple[list[Row], list[str]]:
    notes: list[str] = []
    of_runs: list[list[Row]] = []
    for number, run in enumerate(runs):
        own, problems = rows_of_run(run.folder, number)
        of_runs.append(own)
        notes += problems
    named = _named_rows(config, runs, [row for rows in of_runs for row in rows], notes)
    for number, run in enumerate(runs):
        if of_runs[number] or any(row.run == number for row in named):
            continue
        of_runs[number], problems = best_validation(run.folder, number)
        notes += problems
        if not of_runs[number]:
            notes.append(f"{run.folder}: no scores; make them with {scoring_command(run.folder)}")
    return _with_own_titles([row for rows in [*of_runs, named] for row in rows]), notes


def _named_rows(config: Report, runs: Sequence[RunFolder], found: Sequence[Row], notes: list[str]) -> list[Row]:
    """Return the rows of files of scores that the settings name and that are not found already."""
    known, rows = {Path(row.file).resolve() for row in found}, []
    for file in [*filter(is_scores, config.runs), *config.scores]:
        row = read_row(Path(file))
        if Path(file).resolve() in known:
            continue
        known.add(Path(file).resolve())
        experiments = Path(file).resolve().parent.parent
        of = places_of(row.checkpoint, [run.folder for run in runs], experiments) if row.checkpoint else []
        if len(of) > 1:
            notes.append(f"{file}: its {row.checkpoint} is no longer there, and may be that of {len(of)} of the runs")
        rows.append(replace(row, run=of[0] if len(of) == 1 else None))
    return rows


def _with_own_titles(rows: Sequence[Row]) -> list[Row]:
    """Put before titles that several rows have as much of the end of their folders as tells each from the others."""
    return [replace(row, title=_own_title(row, [one for one in rows if one.title == row.title])) for row in rows]


def _own_title(row: Row, alike: Sequence[Row]) -> str:
    if len(alike) == 1:
        return row.title
    own, *others = (_telling_folders(one) for one in (row, *(one for one in alike if one is not row)))
    for number in range(1, len(own) + 1):
        if all(other[-number:] != own[-number:] for other in others):
            return "/".join((*own[-number:], row.title))
    return row.file


def _telling_folders(row: Row) -> tuple[str, ...]:
    return tuple(part for part in Path(row.file).resolve().parent.parts if part not in ("scores", "snapshots"))


def _rounds(config: Report, runs: Sequence[RunFolder], notes: list[str]) -> tuple[list[dict[str, Any]], list[ClassSet]]:
    rounds, class_sets = [], []
    found = [run.config.pseudo_labels for run in runs if run.config.pseudo_labels is not None]
    for place in dict.fromkeys([*config.pseudo_labels, *found]):
        if is_url(place):
            notes.append(f"{without_secrets(place)}: pseudo-labels far away are not looked into; fetch the folder")
            continue
        if place not in config.pseudo_labels and not Path(place).exists():
            if not any(_ends_in(one, place) for one in config.pseudo_labels):
                notes.append(f"{place}: these pseudo-labels are not there; {elsewhere('pseudo_labels=[…]')}")
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
    names, folders = _names(runs), [told["folder"] for told in rounds]
    for told in rounds:
        told["used_by"] = [
            name
            for name, run in zip(names, runs, strict=True)
            if told["folder"] in _folders_of(run.config.pseudo_labels, folders)
        ]


def _folders_of(named: str | None, folders: Sequence[str]) -> list[str]:
    """Return which folder a run's settings name, perhaps from another folder than this one; none if several may be."""
    if named is None or is_url(named):
        return []
    if here := [one for one in folders if Path(one).resolve() == Path(named).resolve()]:
        return here
    there = [one for one in folders if not Path(named).exists() and _ends_in(one, named)]
    return there if len(there) == 1 else []


def _ends_in(folder: str, named: str) -> bool:
    parts = Path(named).parts
    return Path(folder).resolve().parts[-len(parts) :] == parts


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
