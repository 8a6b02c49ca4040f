"""One cell of the table: a method on a task with a seed, from what is missing of its training to its scores.

A finished cell is a file that says what it was made with. A start that finds it reads it; one that finds a cell of
other settings refuses, so that no table mixes two. Precision alone may differ, between seeds: a processor that computes
no bfloat16 takes some six times as long with it. What is unfinished goes on where it stopped, as the programs do.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.methods import EVERY, METHODS
from benchmarks.accuracy.tasks import TASKS, Scale, data_words, pack
from benchmarks.programs import run
from esl_dist.checked import Share, read, read_content
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.inference.labelling.job import SUMMARY
from esl_dist.inference.labelling.labels import read_summary
from esl_dist.made_with import require_same
from esl_dist.reporting.scores import scores_from
from esl_dist.runs.run_record import RUN_RECORD, read_record

REMEDY = "delete it and start again"

PRECISION = "precision"

RUNNING = ("loader.workers=0", "pictures_every=0", "checkpoints.every=100", "checkpoints.keep_newest=1")
"""Settings of every training that change nothing of what it learns."""


@dataclass(frozen=True)
class Place:
    """Where a table's data lie and its results go.

    Attributes:
        folder: of shards, runs and cells.
        data: folder of the data sets.
        weights: ImageNet's weights, from which first stages start; None: they start from random ones.
        scale: how large it is computed.
    """

    folder: Path
    data: Path
    weights: Path | None
    scale: Scale


@dataclass(frozen=True)
class Cell:
    """A place in the table, by the keys of `TASKS` and `METHODS`."""

    task: str
    method: str
    seed: int

    @property
    def run(self) -> str:
        """Name of the run that is scored."""
        return f"{METHODS[self.method].scored or self.method}_seed_{self.seed}"

    def file(self, folder: Path) -> Path:
        """Return the file that the cell leaves."""
        return folder / self.task / "cells" / f"{self.method}_seed_{self.seed}.json"


@dataclass(frozen=True)
class Entries:
    """What the file of a cell holds: scores as shares, and of the pseudo-labels it was trained on how many were right.

    `made_with` has the settings of its trainings, the first stage's too; `commit` is the program's, None where it is
    not known.
    """

    miou: Share
    iou: dict[str, Share | None]
    made_with: dict[str, Any]
    commit: str | None = None
    labels_kept: Share | None = None
    labels_right: Share | None = None

    @property
    def precision(self) -> str:
        """Of the forward passes of its training."""
        return str(self.made_with["training"].get(PRECISION))


def made_with(cell: Cell, scale: Scale) -> dict[str, Any]:
    """Return the settings that a cell's scores depend on, those of the training before it too."""
    method = METHODS[cell.method]
    trained = METHODS[method.scored or cell.method]
    task = TASKS[cell.task]
    words = [*data_words(task, scale), *scale.words, *EVERY, *trained.words, f"seed={cell.seed}"]
    if trained.rare_classes:
        words += task.rare_class_words(scale)
    start = trained.start and made_with(Cell(cell.task, trained.start, cell.seed), scale)
    return {
        "training": dict(word.split("=", 1) for word in words),
        "start": start,
        "labels": trained.labels,
        "target_statistics": method.target_statistics,
    }


def read_cell(cell: Cell, place: Place) -> Entries | None:
    """Return what a finished cell holds; None: it is not finished.

    Raises:
        UserError: its file is damaged, or was made with other settings.
    """
    file = cell.file(place.folder)
    if not file.is_file():
        return None
    entries = read(read_content(file, REMEDY), Entries)
    may_change = (f"training.{PRECISION}", f"start.training.{PRECISION}")
    require_same(entries.made_with, made_with(cell, place.scale), f"{file}: was made with another", REMEDY, may_change)
    return entries


def require_one_precision(missing: Sequence[Cell], place: Place) -> None:
    """Refuse to compute rows of a seed in another precision than those that are finished, which they are compared with.

    Raises:
        UserError: a finished cell has another.
    """
    now = place.scale.precision
    for task, seed in dict.fromkeys((cell.task, cell.seed) for cell in missing):
        for method in METHODS:
            cell = Cell(task, method, seed)
            entries = read_cell(cell, place)
            if entries is not None and entries.precision != now:
                raise UserError(
                    f"{cell.file(place.folder)}: was computed with precision={entries.precision}, and none with {now} "
                    "can be added, since the rows of a seed are compared; start with "
                    f"--precision {entries.precision}, or delete the cells and runs of that seed"
                )


def make_cell(cell: Cell, place: Place) -> None:
    """Do what is missing of a cell, and write its file; the run that it starts from has to be there.

    Raises:
        UserError: a run was trained in another precision.
        subprocess.CalledProcessError: a program failed; its own message stands above.
    """
    folder, scored = place.folder / cell.task, Cell(cell.task, METHODS[cell.method].scored or cell.method, cell.seed)
    pack(TASKS[cell.task], place.scale, place.data, folder / "shards")
    labels = _label(scored, folder)
    _train(scored, place)
    for trained in filter(None, (METHODS[scored.method].start, scored.method)):
        _require_precision(folder / "snapshots" / Cell(cell.task, trained, cell.seed).run, place.scale.precision)
    scores = _score(cell, folder)
    known = read_summary(labels / SUMMARY) if labels is not None else {"kept": None, "accuracy": None}
    entries = Entries(
        miou=scores["miou"],
        iou=scores["iou"],
        made_with=made_with(cell, place.scale),
        commit=read_record(folder / "snapshots" / scored.run / RUN_RECORD)[-1].commit,
        labels_kept=known["kept"],
        labels_right=known["accuracy"],
    )
    write_json(cell.file(place.folder), asdict(entries))


def _label(cell: Cell, folder: Path) -> Path | None:
    """Make the pseudo-labels that a cell's training learns from, if they are not made; None: it learns from none."""
    method = METHODS[cell.method]
    if method.labels is None:
        return None
    assert method.start is not None
    network = folder / "snapshots" / Cell(cell.task, method.start, cell.seed).run
    output = folder / "labels" / cell.run
    words = [f"target.path={folder}/shards/target", f"output={output}", "compare_with_labels=true", "workers=0"]
    run("launch/pseudo_label.py", [f"checkpoint={network}", f"score={method.labels}", *words])
    return output


def _train(cell: Cell, place: Place) -> None:
    """Train to the last step, if that is not done."""
    folder, method = place.folder / cell.task, METHODS[cell.method]
    words = [f"experiments={folder}", f"source.path={folder}/shards/source", f"target.path={folder}/shards/target"]
    if method.start is not None:
        words.append(f"network.start={folder}/snapshots/{Cell(cell.task, method.start, cell.seed).run}")
    elif place.weights is not None:
        words.append(f"network.start={place.weights}")
    if method.labels is not None:
        words.append(f"pseudo_labels={folder}/labels/{cell.run}")
    settings = made_with(cell, place.scale)["training"]
    run(
        "launch/train.py",
        [f"name={cell.run}", *words, *RUNNING, *(f"{key}={value}" for key, value in settings.items())],
    )


def _require_precision(run_folder: Path, precision: str) -> None:
    """Refuse a run that an earlier start of the table has begun, or finished, in another precision."""
    for start in read_record(run_folder / RUN_RECORD):
        if start.precision != precision:
            raise UserError(
                f"{run_folder}: was trained with precision={start.precision}, and this table is asked for with "
                f"{precision}; delete the cells and runs of that seed, or start with --precision {start.precision}"
            )


def _score(cell: Cell, folder: Path) -> dict[str, Any]:
    """Score the network of a cell on the validation split of its target."""
    output = folder / "scores" / f"{cell.method}_seed_{cell.seed}.json"
    # By its data set's name, dusk would be the source's.
    words = [f"data.path={folder}/shards/validation", "domain=target", f"output={output}", "workers=0"]
    if METHODS[cell.method].target_statistics:
        words.append(f"statistics_from={folder}/shards/target")
    run("launch/evaluate.py", [f"checkpoint={folder}/snapshots/{cell.run}", *words])
    return scores_from(read_content(output, REMEDY))
