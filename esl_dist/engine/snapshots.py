"""Every snapshot of a run in turn: which there will be, waiting for them, and scores that are kept.

A snapshot is a checkpoint that stays: every multiple of `checkpoints.keep_every` at which one is written, and the last.
Their scores lie in one JSON file, written anew after each; a second run only does what is not in it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from esl_dist import config as settings
from esl_dist.config_files import load_config
from esl_dist.engine.checkpoints import MANIFEST, RUN_CONFIG, checkpoint_folder
from esl_dist.engine.distributed import from_main, is_main
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json

POLL_SECONDS = 2.0

Scores = dict[str, Any]


def snapshot_steps(config: settings.Train) -> list[int]:
    """Return the steps whose checkpoints stay when the run is finished, in ascending order."""
    options = config.checkpoints
    kept = range(options.every, config.steps, options.every)
    return [step for step in kept if options.keep_every and step % options.keep_every == 0] + [config.steps]


def score_snapshots(
    run: Path, kept: Path, made_with: dict[str, Any], wait_minutes: float, score: Callable[[Path], Scores]
) -> dict[int, Scores]:
    """Score the run's snapshots that are not scored yet; returns the scores of all, by step.

    Args:
        run: the run's folder.
        kept: JSON file of the scores.
        made_with: what else the scores depend on; a file made with something else is refused.
        wait_minutes: how long to wait for each snapshot that is not there; 0: take what there is.
        score: checkpoint folder → scores; called on every rank.

    Raises:
        UserError: no such run, no snapshot at all, one that does not come in time, or a file of other scores.
    """
    if not _appears(run / RUN_CONFIG, wait_minutes):
        raise UserError(f"{run}: no run; expected a folder with {RUN_CONFIG}, as launch/train.py writes it")
    scores = _read(kept, made_with)
    for step in snapshot_steps(load_config(settings.Train, run / RUN_CONFIG)):
        if step in scores:
            continue
        folder = checkpoint_folder(run, step)
        if _appears(folder / MANIFEST, wait_minutes):
            scores[step] = score(folder)
            if is_main():
                _write(kept, made_with, scores)
        elif wait_minutes:
            raise UserError(
                f"{folder}: not written within {wait_minutes:g} minutes; is the training still running? The scores of "
                f"{len(scores)} snapshots are in {kept}"
            )
    if not scores:
        raise UserError(f"{run}: no snapshot yet; wait for them with wait_minutes=…, or score one with mode=single")
    return scores


def best_step(scores: dict[int, Scores]) -> int:
    """Return the step of the highest mIoU, the first of equals; a snapshot without one counts as 0."""
    return max(sorted(scores), key=lambda step: scores[step]["miou"] or 0.0)


def _appears(path: Path, wait_minutes: float) -> bool:
    """Say, alike on every rank, whether `path` is there or comes within `wait_minutes`."""
    return any(found for found in _looks(path, wait_minutes))


def _looks(path: Path, wait_minutes: float) -> Iterator[bool]:
    deadline = time.monotonic() + 60 * wait_minutes
    told = False
    while True:
        found, late = from_main([path.exists(), time.monotonic() >= deadline])
        yield found
        if late:
            return
        if is_main() and not told:
            print(f"waiting for {path.parent}", flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _read(kept: Path, made_with: dict[str, Any]) -> dict[int, Scores]:
    if not from_main([kept.is_file()])[0]:
        return {}
    content = read_json(kept)
    try:
        made_before, snapshots = content["made_with"], content["snapshots"]
        scores = {int(step): dict(one) for step, one in snapshots.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{kept}: not a file of a run's scores; choose another output or delete it") from error
    changed = [key for key, value in made_with.items() if made_before.get(key) != value]
    if changed:
        raise UserError(f"{kept}: holds scores made with another {', '.join(changed)}; choose another output")
    return scores


def _write(kept: Path, made_with: dict[str, Any], scores: dict[int, Scores]) -> None:
    best = best_step(scores)
    snapshots = {str(step): scores[step] for step in sorted(scores)}
    write_json(kept, {"made_with": made_with, "best": {"step": best, **scores[best]}, "snapshots": snapshots})
