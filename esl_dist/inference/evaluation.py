"""An evaluation from its settings to what it leaves: scores, predictions, curves, and what is told of them.

Everything is written before it is printed, because whoever reads may be gone by then.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esl_dist.config import Evaluate
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.inference.output_places import (
    refuse_among_inputs,
    refuse_in_each_other,
    refuse_replacing,
    refuse_unwritable,
)
from esl_dist.inference.prediction_files import PredictionFiles, values_of
from esl_dist.inference.predictor import Inputs, Predictor, open_inputs, print_plan, with_common_size
from esl_dist.inference.scoring import score_networks, write_score_curves
from esl_dist.ranks.collectives import is_main, print_on_main, require_same_on_ranks
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import percent, score_table
from esl_dist.runs.checkpoints import checkpoint_folder
from esl_dist.runs.snapshots import best_step, first_snapshot, score_snapshots


def evaluate(config: Evaluate, device: torch.device) -> None:
    """Score on the ranks that have joined."""
    began = time.monotonic()
    inputs = open_inputs(config.data, config, device)
    _check_places(config, inputs.shards)
    statistics = None if config.statistics_from is None else open_shards(config.statistics_from)
    if statistics is not None:
        require_same_on_ranks(statistics.fingerprint(), "statistics_from")
    made = (_evaluate_snapshots if config.mode == "best" else _evaluate_once)(config, inputs, statistics)
    print_on_main(account(f"done in {duration(time.monotonic() - began)}", made))


def _check_places(config: Evaluate, shards: ShardReader) -> None:
    """Refuse scores of pictures without labels, and to write over what is read or is no scores."""
    of_scores = config.mode == "best" or config.output is not None or config.predictions is None
    if not shards.index.class_sets and of_scores:
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
    refuse_among_inputs("output", config.output, inputs)
    refuse_among_inputs("predictions", config.predictions, inputs)
    refuse_replacing("output", config.output)
    refuse_in_each_other("output", config.output, "predictions", config.predictions)


def _plan(config: Evaluate, scores: Path | None) -> dict[str, str]:
    return {
        **({} if config.statistics_from is None else {"statistics": config.statistics_from}),
        "predictions": f"{config.predictions}, {config.prediction_format}" if config.predictions else "",
        "scores": "" if scores is None else str(scores),
    }


def _prediction_files(config: Evaluate, inputs: Inputs, first: Predictor) -> PredictionFiles | None:
    if config.predictions is None:
        return None
    values = values_of(inputs.named_classes(first.trained) or first.trained.classes, config.prediction_format)
    return PredictionFiles(Path(config.predictions), inputs.shards, config.prediction_format, values)


def _evaluate_once(config: Evaluate, inputs: Inputs, statistics: ShardReader | None) -> dict[str, str]:
    """Score one network or an ensemble; returns what was made."""
    shards, output = inputs.shards, None if config.output is None else Path(config.output)
    refuse_unwritable("output", output and output.parent)
    refuse_unwritable("predictions", config.predictions)
    paths = config.checkpoints if config.mode == "ensemble" else [str(config.checkpoint)]
    weights = config.ensemble_weights or [1.0] * len(paths)
    loaded = [replace(inputs.load(path), weight=weight) for path, weight in zip(paths, weights, strict=True)]
    ensemble = with_common_size(loaded)
    doing = "scoring" if shards.index.class_sets else "predicting"
    print_plan(f"{doing} ({config.mode})", shards, ensemble, _plan(config, output))
    files = _prediction_files(config, inputs, ensemble[0])
    scores = score_networks(ensemble, shards, statistics, files, Workers(config.workers, config.timeout_minutes))
    made = {"predictions": config.predictions or ""}
    if not shards.index.class_sets:
        return {**made, "scores": "none: the pictures have no labels"}
    if is_main():
        origin: dict[str, Any] = {"checkpoint": paths[0], "step": ensemble[0].trained.step}
        if config.mode == "ensemble":
            origin = {"checkpoints": paths, "weights": weights}
        if output is not None:
            write_json(output, {**scores, **origin})
        curves = write_score_curves(ensemble, scores, shards, files, Path(config.experiments))
        made |= {"scores": config.output or "", "curves": "" if curves is None else f"tensorboard --logdir {curves}"}
    print_on_main(score_table({" + ".join(one.title for one in ensemble): scores}))
    return made


def _evaluate_snapshots(config: Evaluate, inputs: Inputs, statistics: ShardReader | None) -> dict[str, str]:
    """Score the checkpoints of a run that are not scored yet, all under the same conditions, and name the best."""
    run, shards = Path(str(config.checkpoint)), inputs.shards
    data = f"{shards.index.dataset}_{shards.index.split}"
    kept = run / "scores" / f"{data}.json" if config.output is None else Path(config.output)
    first = first_snapshot(run, config.wait_minutes, inputs.load)
    print_plan("scoring (best)", shards, [first], _plan(config, kept))
    all_files, workers = _prediction_files(config, inputs, first), Workers(config.workers, config.timeout_minutes)
    made_with = {
        "data": shards.fingerprint(),
        "size": None if first.size is None else list(first.size),
        "statistics_from": None if statistics is None else statistics.fingerprint(),
        "domain": first.statistics if statistics is None else "target",
        "precision": first.precision,
    }
    with_curves = is_main()

    def files_of(folder: Path) -> PredictionFiles | None:
        return None if all_files is None else replace(all_files, folder=all_files.folder / folder.name)

    def is_done(folder: Path, known: dict[str, Any]) -> bool:
        files = files_of(folder)
        return files is None or (known.get("prediction_format", "colors") == files.form and files.are_written())

    def score(folder: Path) -> dict[str, Any]:
        nonlocal with_curves
        refuse_unwritable("output", kept.parent)
        refuse_unwritable("predictions", config.predictions)
        ensemble, files = [replace(first, trained=inputs.load(folder).trained)], files_of(folder)
        scores = score_networks(ensemble, shards, statistics, files, workers)
        if with_curves:
            # Where they cannot be written, one warning is enough.
            with_curves = write_score_curves(ensemble, scores, shards, files, Path(config.experiments)) is not None
        return scores | (
            {} if config.prediction_format == "colors" else {"prediction_format": config.prediction_format}
        )

    scores = score_snapshots(run, kept, made_with, config.wait_minutes, score, is_done)
    best = best_step(scores)
    print_on_main(score_table({f"step {step}": one for step, one in sorted(scores.items())}))
    print_on_main(f"best: step {best}, mIoU {percent(scores[best]['miou'])}; all scores are in {kept}")
    following = f"checkpoint={checkpoint_folder(run, best)} target.path=… output=…"
    made = {"scores": str(kept), "predictions": config.predictions or ""}
    return {**made, "next": f"python launch/pseudo_label.py {following}"}
