"""An evaluation from its settings to what it leaves: scores, predictions, curves, and what is told of them.

Everything is written before it is printed, for who reads may be gone by then.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esl_dist.config import Evaluate
from esl_dist.data.class_sets import read_class_sets
from esl_dist.data.labels import ClassSet
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.inference.conditions import (
    Conditions,
    conditions_for,
    differences,
    statistics_of,
    told_size,
    told_statistics,
    with_common_size,
)
from esl_dist.inference.output_folders import refuse_among_inputs, refuse_replacing, refuse_unwritable
from esl_dist.inference.prediction_files import are_written
from esl_dist.inference.scoring import is_labelled, score_networks, write_score_curves
from esl_dist.ranks.collectives import is_main, print_on_main, require_same_on_ranks, world_size
from esl_dist.ranks.session import one_thread_on_cpu
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import percent, score_table
from esl_dist.runs.checkpoints import checkpoint_folder
from esl_dist.runs.load import TrainedNetwork, load_trained
from esl_dist.runs.snapshots import best_step, first_snapshot, score_snapshots


def evaluate(config: Evaluate, device: torch.device) -> None:
    """Score on the ranks that have joined."""
    began = time.monotonic()
    one_thread_on_cpu(device)
    shards = open_shards(config.data.path)
    require_same_on_ranks(shards.fingerprint(), "shards")
    _check_places(config, shards)
    if config.mode == "best":
        _evaluate_snapshots(config, shards, device, began)
    else:
        _evaluate_once(config, shards, device, began)


def _check_places(config: Evaluate, shards: ShardReader) -> None:
    """Refuse scores of pictures without labels, and to write over what is read or is no scores.

    Raises:
        UserError: naming the settings.
    """
    of_scores = config.mode == "best" or config.output is not None or config.predictions is None
    if not is_labelled(shards) and of_scores:
        raise UserError(
            f"{shards.folder}: its pictures have no labels, so nothing can be scored; for predictions alone give "
            "predictions=FOLDER with mode=single or mode=ensemble, and no output"
        )
    inputs = [
        ("data.path", config.data.path),
        ("statistics_from", config.statistics_from),
        ("classes_from", config.classes_from),
        ("checkpoint", config.checkpoint),
        *(("checkpoints", one) for one in config.checkpoints),
    ]
    for setting, place in (("output", config.output), ("predictions", config.predictions)):
        if place is not None:
            refuse_among_inputs(setting, place, inputs)
    if config.output is None:
        return
    refuse_replacing("output", Path(config.output))
    if config.predictions is not None:
        output, predictions = Path(config.output).resolve(), Path(config.predictions).resolve()
        if predictions in (output, *output.parents) or output in predictions.parents:
            raise UserError(
                f"output={config.output} and predictions={config.predictions} lie in each other; choose another place "
                "for the scores"
            )


def _evaluate_once(config: Evaluate, shards: ShardReader, device: torch.device, began: float) -> None:
    """Score one network or an ensemble."""
    _refuse_unwritable_places(config, None if config.output is None else Path(config.output))
    paths = config.checkpoints if config.mode == "ensemble" else [str(config.checkpoint)]
    networks = [_load(path, config, shards, device) for path in paths]
    weights = config.ensemble_weights or [1.0] * len(networks)
    conditions = [conditions_for(one, shards, config.data.size, config, device) for one in networks]
    if config.data.size is None and not config.as_packed:
        conditions = with_common_size(networks, conditions)
    _say_plan(config, networks, conditions, shards, device)
    scores = score_networks(networks, weights, conditions, shards, config, device)
    made = {"predictions": config.predictions or ""}
    if is_labelled(shards):
        origin: dict[str, Any] = {"checkpoint": paths[0], "step": networks[0].step}
        if config.mode == "ensemble":
            origin = {"checkpoints": paths, "weights": weights}
        if is_main():
            if config.output is not None:
                write_json(Path(config.output), {**scores, **origin})
            curves = write_score_curves(networks, scores, shards, Path(config.experiments), _shown(config))
            made |= {
                "scores": config.output or "",
                "curves": "" if curves is None else f"tensorboard --logdir {curves}",
            }
        print_on_main(score_table({" + ".join(_title(one) for one in networks): scores}))
    else:
        made["scores"] = "none, for the pictures have no labels"
    print_on_main(account(f"done in {duration(time.monotonic() - began)}", made))


def _evaluate_snapshots(config: Evaluate, shards: ShardReader, device: torch.device, began: float) -> None:
    """Score the checkpoints of a run that are not scored yet, all under the same conditions, and name the best."""
    run = Path(str(config.checkpoint))
    data = f"{shards.index.dataset}_{shards.index.split}"
    kept = run / "scores" / f"{data}.json" if config.output is None else Path(config.output)
    first = first_snapshot(run, config.wait_minutes, lambda folder: _load(folder, config, shards, device))
    how = conditions_for(first, shards, config.data.size, config, device)
    _say_plan(replace(config, output=str(kept)), [first], [how], shards, device)
    statistics = None if config.statistics_from is None else open_shards(config.statistics_from).fingerprint()
    made_with = {
        "data": shards.fingerprint(),
        "size": None if how.size is None else list(how.size),
        "statistics_from": statistics,
        "domain": "target" if statistics is not None else statistics_of(first, how),
        "precision": how.precision,
    }

    def of(folder: Path) -> Evaluate:
        return replace(config, predictions=config.predictions and str(Path(config.predictions) / folder.name))

    def is_done(folder: Path, known: dict[str, Any]) -> bool:
        predictions = of(folder).predictions
        same_format = known.get("prediction_format", "colors") == config.prediction_format
        return predictions is None or (same_format and are_written(shards, Path(predictions)))

    with_curves = is_main()

    def score(folder: Path) -> dict[str, Any]:
        nonlocal with_curves
        _refuse_unwritable_places(of(folder), kept)
        network = _load(folder, config, shards, device)
        scores = score_networks([network], [1.0], [how], shards, of(folder), device)
        if with_curves:
            curves = write_score_curves([network], scores, shards, Path(config.experiments), _shown(of(folder)))
            # Where they cannot be written, one warning is enough.
            with_curves = curves is not None
        other_format = config.prediction_format != "colors"
        return {**scores, "prediction_format": config.prediction_format} if other_format else scores

    scores = score_snapshots(run, kept, made_with, config.wait_minutes, score, is_done)
    best = best_step(scores)
    print_on_main(score_table({f"step {step}": one for step, one in sorted(scores.items())}))
    print_on_main(f"best: step {best}, mIoU {percent(scores[best]['miou'])}; all scores are in {kept}")
    made = {
        "scores": str(kept),
        "predictions": config.predictions or "",
        "next": f"python launch/pseudo_label.py checkpoint={checkpoint_folder(run, best)} target.path=… output=…",
    }
    print_on_main(account(f"done in {duration(time.monotonic() - began)}", made))


def _load(path: str | Path, config: Evaluate, shards: ShardReader, device: torch.device) -> TrainedNetwork:
    """Load a network; a file that does not know its classes takes those of the shards or of `config.classes_from`."""
    known: dict[str, ClassSet] = shards.index.class_sets
    if config.classes_from is not None:
        known = read_class_sets(Path(config.classes_from))
    return load_trained(path, known, config.class_set, device)


def _refuse_unwritable_places(config: Evaluate, scores: Path | None) -> None:
    """Make sure, before anything is computed, that it can be written.

    Raises:
        UserError: naming the setting.
    """
    if scores is not None:
        refuse_unwritable(scores.parent, f"scores in {scores}", "output")
    if config.predictions is not None:
        refuse_unwritable(Path(config.predictions), f"predictions in {config.predictions}", "predictions")


def _say_plan(
    config: Evaluate,
    networks: Sequence[TrainedNetwork],
    conditions: Sequence[Conditions],
    shards: ShardReader,
    device: torch.device,
) -> None:
    """Say what is about to be done, and what of it is another than in training."""
    first, pairs = networks[0], list(zip(networks, conditions, strict=True))
    facts = {
        "data": f"{shards.folder}: {shards.index.dataset} {shards.index.split}, {len(shards)} samples",
        "network": " + ".join(f"{_title(one)}, {one.architecture}" for one in networks),
        "classes": f"{first.class_set}, {len(first.classes)} classes",
        "size": " + ".join(_each(told_size(one, how, shards) for one, how in pairs)),
        "statistics": config.statistics_from or " + ".join(_each(told_statistics(one, how) for one, how in pairs)),
        "precision": " + ".join(_each(how.precision for how in conditions)),
        "device": f"{world_size()} process{'es' if world_size() > 1 else ''} on {device.type}",
        "predictions": f"{config.predictions}, {config.prediction_format}" if config.predictions else "",
        "scores": config.output or "",
    }
    doing = "scoring" if is_labelled(shards) else "predicting"
    print_on_main(account(f"{doing} ({config.mode})", facts))
    for one, how in pairs:
        for line in differences(one, how, shards):
            print_on_main(f"note: {line}")


def _each(texts: Iterable[str]) -> list[str]:
    """Return the texts, one of each, in the order in which they come first."""
    return list(dict.fromkeys(texts))


def _title(network: TrainedNetwork) -> str:
    """Return a network's name in a table."""
    return network.name if network.step is None else f"{network.name} ({network.step})"


def _shown(config: Evaluate) -> Path | None:
    """Return the folder of predictions that are pictures to look at."""
    return Path(config.predictions) if config.predictions and config.prediction_format == "colors" else None
