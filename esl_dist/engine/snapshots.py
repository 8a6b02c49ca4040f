"""Every checkpoint of a run in turn: which there are and will be, waiting for them, and scores that are kept.

A snapshot is a checkpoint that stays: every multiple of `checkpoints.keep_every` at which one is written, and the last.
Those are waited for; the others are scored, too, where they are there at the start. Scores lie in one JSON file,
written anew after each, with the checksum of the weights they are of; a second run only does what is new.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from esl_dist import config as settings
from esl_dist.checked import Content, read_content
from esl_dist.engine.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    SEGMENTATION,
    BrokenCheckpointError,
    checkpoint_folder,
    checkpoint_folders,
    read_manifest,
    run_config,
    step_of,
)
from esl_dist.engine.conditions import changed_keys, told_changes
from esl_dist.engine.distributed import from_main, is_main, say, sum_over_ranks, warn
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.reporting.scores import percent

POLL_SECONDS = 2.0

Scores = dict[str, Any]


def snapshot_steps(config: settings.Train) -> list[int]:
    """Return the steps whose checkpoints stay when the run is finished, in ascending order."""
    options = config.checkpoints
    kept = range(options.every, config.steps, options.every)
    return [step for step in kept if options.keep_every and step % options.keep_every == 0] + [config.steps]


def steps_to_score(run: Path, wait_minutes: float) -> list[int]:
    """Return, alike on every rank, the steps of a run's snapshots and of all checkpoints that are there, ascending.

    Raises:
        UserError: no such run, also after `wait_minutes`.
    """
    if not _appears(run / RUN_CONFIG, wait_minutes):
        raise UserError(f"{run}: no run; expected a folder with {RUN_CONFIG}, as launch/train.py writes it")
    there = [step_of(folder) for folder in checkpoint_folders(run)]
    # A training that goes on may remove some of them between the looks of two ranks.
    number = int(sum_over_ranks(torch.tensor(len(there) if is_main() else 0)))
    found = sum_over_ranks(torch.tensor(there if is_main() else [0] * number, dtype=torch.int64)).tolist()
    return sorted({*snapshot_steps(run_config(run)), *found})


def first_snapshot(run: Path, wait_minutes: float) -> Path:
    """Return the folder of the first checkpoint of a run that can be used, and wait for it if need be.

    Raises:
        UserError: no such run, or none of its checkpoints is there or can be used.
    """
    for step in steps_to_score(run, wait_minutes):
        folder = checkpoint_folder(run, step)
        if _weights_of(folder, wait_minutes, lambda text: None) is not None:
            return folder
    raise _no_snapshot(run)


def _no_snapshot(run: Path) -> UserError:
    return UserError(f"{run}: no checkpoint yet that can be scored; wait for its snapshots with wait_minutes=…")


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
    steps = steps_to_score(run, wait_minutes)
    name = run_config(run).name
    before = _read(kept, made_with)
    scores: dict[int, Scores] = {}
    for step in steps:
        folder = checkpoint_folder(run, step)
        weights = _weights_of(folder, wait_minutes, warn)
        if weights is None:
            continue
        known = before.get(step)
        if known is not None and from_main([known["weights"] == weights and is_done(folder, known)])[0]:
            scores[step] = known
            continue
        try:
            scores[step] = {**score(folder), "weights": weights}
        except BrokenCheckpointError as error:
            # Its bytes are those that were saved, but they do not fit its run.
            warn(f"passing over a broken checkpoint: {error}")
            continue
        if is_main():
            _write(kept, made_with, {**before, **scores})
        # After it is written: who reads may be gone.
        say(f"{name}, step {step}: mIoU {percent(scores[step]['miou'])}")
    if not scores:
        raise _no_snapshot(run)
    if is_main() and scores != before:
        _write(kept, made_with, scores)
    return scores


def best_step(scores: Mapping[int, Scores]) -> int:
    """Return the step of the highest mIoU, the first of equals; a snapshot without one counts as 0."""
    return max(sorted(scores), key=lambda step: scores[step]["miou"] or 0.0)


def _weights_of(folder: Path, wait_minutes: float, tell: Callable[[str], None]) -> str | None:
    """Return the checksum of a snapshot's weights; None, and why is told, if it is not there or cannot be used.

    Raises:
        UserError: a snapshot that is yet to come did not come in time, or is of another version of the program.
    """
    run = folder.parent.parent
    later = [found for found in checkpoint_folders(run) if step_of(found) > step_of(folder)]
    can_come = from_main([not later])[0]
    if not _appears(folder / MANIFEST, wait_minutes if can_come else 0):
        if wait_minutes and can_come:
            raise UserError(
                f"{folder}: not written within {wait_minutes:g} minutes; is the training still running? Scores of the "
                "snapshots before it are kept"
            )
        tell(f"{folder}: not there" + ("" if can_come else ", and the run is past it: removed or never kept"))
        return None
    try:
        return read_manifest(folder).files[SEGMENTATION]
    except BrokenCheckpointError as error:
        tell(f"passing over a broken checkpoint: {error}")
        return None


def _appears(path: Path, wait_minutes: float) -> bool:
    """Say, alike on every rank, whether `path` is there or comes within `wait_minutes`."""
    deadline = time.monotonic() + 60 * wait_minutes
    told = False
    while True:
        found, late = from_main([path.exists(), time.monotonic() >= deadline])
        if found or late:
            return found
        if not told:
            say(f"waiting for {path.parent}")
            told = True
        time.sleep(POLL_SECONDS)


def _read(kept: Path, made_with: dict[str, Any]) -> dict[int, Scores]:
    if not from_main([kept.is_file()])[0]:
        return {}
    return read_scores(kept, made_with)


def read_scores(kept: Path, made_with: Mapping[str, Any]) -> dict[int, Scores]:
    """Read the scores of a run's snapshots, by step.

    Raises:
        UserError: the file is not one that `score_snapshots` writes, or holds scores made with something else.
    """
    content = read_content(kept, "it is no whole file of a run's scores: choose another output or delete it")
    made_before = content.at("made_with").mapping()
    scores = {_step(step, one): scores_from(one) for step, one in content.at("snapshots").items()}
    changed = [key for key in changed_keys(made_before, made_with) if key in made_with]
    if changed:
        raise UserError(
            f"{kept}: holds scores made with another {told_changes(changed, made_before, made_with)}; choose another "
            "output, or delete it"
        )
    return scores


def _step(text: str, scores: Content) -> int:
    if not text.isdecimal() or str(int(text)) != text:
        scores.refuse("its scores below its step, a number")
    scores.at("weights").sha256()
    return int(text)


def scores_from(content: Content) -> Scores:
    """Return scores as `reporting.scores.scores_of` makes them, and what else is kept with them.

    Raises:
        UserError: a score is no share.
    """
    shares = [content.at("miou"), *(one for _, one in content.at("iou").items())]
    if (fewer := content.get("miou_over")) is not None:
        shares += [one for _, one in fewer.items()]
    if (accuracy := content.get("accuracy")) is not None:
        shares.append(accuracy)
    for share in shares:
        if share.value is not None:
            share.number(0, 1)
    scores: Scores = content.value
    return scores


def _write(kept: Path, made_with: dict[str, Any], scores: Mapping[int, Scores]) -> None:
    best = best_step(scores)
    snapshots = {str(step): scores[step] for step in sorted(scores)}
    write_json(kept, {"made_with": made_with, "best": {"step": best, **scores[best]}, "snapshots": snapshots})
