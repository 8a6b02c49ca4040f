"""Every checkpoint of a run in turn: which there are and will be, waiting for them, and scores that are kept.

A snapshot is a checkpoint that stays: every multiple of `checkpoints.keep_every` at which one is written, and the last.
Those are waited for; the others are scored, too, where they are there at the start. Scores lie in one JSON file,
written anew after each, with the checksum of the weights they are of; a second run only does what is new.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch

from esl_dist import config as settings
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.checked import Sha256, matching, read, read_content
from esl_dist.data.labels import class_names
from esl_dist.errors import UserError
from esl_dist.files import shortened, write_json
from esl_dist.made_with import require_same
from esl_dist.ranks.collectives import broadcast_flags, is_main, print_on_main, sum_over_ranks, warn
from esl_dist.reporting.scores import ScoreEntries, percent, scores_of
from esl_dist.runs.checkpoints import (
    Manifest,
    checkpoint_folder,
    checkpoint_folders,
    file_of,
    read_manifest,
    run_config,
    step_of,
)
from esl_dist.runs.fitting import BrokenCheckpointError
from esl_dist.runs.layout import MANIFEST, RUN_CONFIG, no_run

POLL_SECONDS = 2.0

REMEDY = "it is no whole file of a run's scores: choose another output or delete it"

Scores = dict[str, Any]
Made = TypeVar("Made")


def snapshot_steps(config: settings.Train) -> list[int]:
    """Return the steps whose checkpoints stay when the run is finished, in ascending order."""
    options = config.checkpoints
    # 0: none is kept.
    apart = math.lcm(options.every, options.keep_every)
    return [*(range(apart, config.steps, apart) if apart else ()), config.steps]


def first_snapshot(run: Path, wait_minutes: float, load: Callable[[Path], Made]) -> Made:
    """Load the first checkpoint of a run that can be used, and wait for it if need be; called on every rank.

    Raises:
        UserError: no such run, or none of its checkpoints is there or can be used.
    """
    # What is passed over is told when its turn to be scored comes.
    return next(_made_of_each(run, wait_minutes, lambda folder, _: load(folder), lambda text: None))


def score_snapshots(
    run: Path,
    kept: Path,
    made_with: dict[str, Any],
    wait_minutes: float,
    score: Callable[[Path], Scores],
    is_done: Callable[[Path, Scores], bool] = lambda folder, known: True,
) -> dict[int, Scores]:
    """Score the run's checkpoints that are not scored yet; returns the scores of those that are there, by step.

    Args:
        run: the run's folder.
        kept: JSON file of the scores.
        made_with: what else the scores depend on; a file made with something else is refused.
        wait_minutes: how long to wait for each snapshot that is yet to come; 0: take what there is.
        score: checkpoint folder → scores; called on every rank.
        is_done: says of a checkpoint folder and the scores it has whether all that goes with them is there, too.

    Raises:
        UserError: no such run, no snapshot at all, one that does not come in time, or a file of other scores.
    """
    before = read_scores(kept, made_with) if broadcast_flags([kept.is_file()])[0] else {}
    scores: dict[int, Scores] = {}

    def known_or_new(folder: Path, manifest: Manifest) -> tuple[int, str | None, Scores]:
        step, weights = step_of(folder), manifest.files[file_of(SEGMENTATION)]
        known = before.get(step)
        if known is not None and broadcast_flags([known["weights"] == weights and is_done(folder, known)])[0]:
            _refuse_other_classes(kept, step, known, class_names(manifest.classes))
            return step, manifest.config.name, known
        return step, manifest.config.name, {**score(folder), "weights": weights}

    for step, name, one in _made_of_each(run, wait_minutes, known_or_new, warn):
        scores[step] = one
        if one is not before.get(step):
            if is_main():
                _write(kept, made_with, {**before, **scores})
            # After it is written: who reads may be gone.
            print_on_main(f"{name}, step {step}: mIoU {percent(one['miou'])}")
    if is_main() and scores != before:
        _write(kept, made_with, scores)
    return scores


def _steps_to_score(run: Path, wait_minutes: float) -> list[int]:
    """Return, alike on every rank, the steps of a run's snapshots and of all checkpoints that are there, ascending."""
    if not _appears(run / RUN_CONFIG, wait_minutes):
        raise no_run(run)
    there = [step_of(folder) for folder in checkpoint_folders(run)]
    # A training that goes on may remove some of them between the looks of two ranks.
    number = int(sum_over_ranks(torch.tensor(len(there) if is_main() else 0)))
    found = sum_over_ranks(torch.tensor(there if is_main() else [0] * number, dtype=torch.int64)).tolist()
    return sorted({*snapshot_steps(run_config(run)), *found})


def _made_of_each(
    run: Path, wait_minutes: float, make: Callable[[Path, Manifest], Made], tell: Callable[[str], None]
) -> Iterator[Made]:
    """Yield what is made of the folder and the manifest of each checkpoint; what is passed over is told.

    Raises:
        UserError: no such run, a snapshot that does not come in time, or none that can be used.
    """
    why_not, number = "", 0
    for step in _steps_to_score(run, wait_minutes):
        folder = checkpoint_folder(run, step)
        try:
            manifest = _manifest_of(folder, wait_minutes, tell)
            if manifest is None:
                continue
            made = make(folder, manifest)
        except BrokenCheckpointError as error:
            # Perhaps its bytes are those that were saved, but they do not fit its run.
            why_not = str(error)
            tell(f"passing over a broken checkpoint: {why_not}")
        else:
            number += 1
            yield made
    if number == 0 and why_not:
        raise UserError(f"{run}: none of its checkpoints can be scored (the newest: {why_not}); put a whole one back")
    if number == 0:
        raise UserError(f"{run}: no checkpoint yet that can be scored; wait for its snapshots with wait_minutes=…")


def best_step(scores: Mapping[int, Scores]) -> int:
    """Return the step of the highest mIoU, the first of equals; a snapshot without one counts as 0."""
    return max(sorted(scores), key=lambda step: scores[step]["miou"] or 0.0)


def _manifest_of(folder: Path, wait_minutes: float, tell: Callable[[str], None]) -> Manifest | None:
    """Return a snapshot's manifest, whose files are as saved; None, and why is told, if it is not there.

    Raises:
        BrokenCheckpointError: it cannot be used.
        UserError: a snapshot that is yet to come did not come in time, or is of another version of the program.
    """
    run = folder.parent.parent
    later = [found for found in checkpoint_folders(run) if step_of(found) > step_of(folder)]
    can_come = broadcast_flags([not later])[0]
    if not _appears(folder / MANIFEST, wait_minutes if can_come else 0):
        if wait_minutes and can_come:
            raise UserError(
                f"{folder}: not written within {wait_minutes:g} minutes; is the training still running? Scores of the "
                "snapshots before it are kept"
            )
        tell(f"{folder}: not there" + ("" if can_come else ", and the run is past it: removed or never kept"))
        return None
    return read_manifest(folder)


def _appears(path: Path, wait_minutes: float) -> bool:
    """Say, alike on every rank, whether `path` is there or comes within `wait_minutes`."""
    deadline = time.monotonic() + 60 * wait_minutes
    for looks in itertools.count():
        found, late = broadcast_flags([path.exists(), time.monotonic() >= deadline])
        if found or late:
            break
        if looks == 0:
            print_on_main(f"waiting for {path.parent}")
        time.sleep(POLL_SECONDS)
    return found


@dataclass(frozen=True, kw_only=True)
class _KeptScores(ScoreEntries):
    weights: Sha256


@dataclass(frozen=True)
class _KeptFile:
    made_with: dict[str, Any]
    snapshots: dict[Annotated[str, matching("0|[1-9][0-9]{0,15}", "a step, a number")], _KeptScores]


def read_scores(kept: Path, made_with: Mapping[str, Any]) -> dict[int, Scores]:
    """Read the scores of a run's snapshots, by step.

    Raises:
        UserError: the file is not one that `score_snapshots` writes, or holds scores made with something else.
    """
    content = read_content(kept, REMEDY)
    before = read(content, _KeptFile).made_with
    before = {key: value for key, value in before.items() if key in made_with}
    require_same(before, made_with, f"{kept}: holds scores made with another", "choose another output, or delete it")
    return {int(step): scores for step, scores in content.value["snapshots"].items()}


def _refuse_other_classes(kept: Path, step: int, scores: Scores, names: list[str]) -> None:
    """Make sure that scores are of all classes of a network and no others, for a table has a column for each."""
    of_nothing = scores_of(np.zeros((len(names), len(names)), np.int64), names)
    for key in ("iou", "miou_over"):
        expected, found = list(of_nothing[key]), list(scores.get(key, {}))
        if found != expected:
            raise UserError(
                f"{kept}: snapshots.{step}.{key}: expected {', '.join(expected) or 'nothing'}, in this order, got "
                f"{shortened(', '.join(found))}; {REMEDY}"
            )


def _write(kept: Path, made_with: dict[str, Any], scores: Mapping[int, Scores]) -> None:
    best = best_step(scores)
    snapshots = {str(step): scores[step] for step in sorted(scores)}
    write_json(kept, {"made_with": made_with, "best": {"step": best, **scores[best]}, "snapshots": snapshots})
