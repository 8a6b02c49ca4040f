"""An evaluation from its settings to what it leaves: scores, predictions, curves, and what is told of them.

Everything is written before it is printed, because whoever reads may be gone by then.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esl_dist.config import Evaluate
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.inference.inputs import Inputs, note_on_raw_ids, open_inputs, print_plan, with_common_size
from esl_dist.inference.output_places import is_writable
from esl_dist.inference.prediction_files import PredictionFiles, values_of
from esl_dist.inference.scoring import Scoring, score_networks, write_score_curves
from esl_dist.prediction.predictor import Predictor
from esl_dist.ranks.collectives import is_main, note_progress, print_on_main, require_same_on_ranks
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import percent, score_table
from esl_dist.runs.checkpoints import checkpoint_folder
from esl_dist.runs.snapshots import best_step, first_snapshot, score_snapshots
from esl_dist.stop_signals import keep_end


def evaluate(config: Evaluate, device: torch.device) -> None:
    """Score on the ranks that have joined."""
    began = time.monotonic()
    inputs = open_inputs(config.data, config, device)
    refuse_unlabelled(config, inputs.shards)
    made = (_evaluate_snapshots if config.mode == "best" else _evaluate_once)(config, inputs)
    print_on_main(account(f"done in {duration(time.monotonic() - began)}", made))


def refuse_unlabelled(config: Evaluate, shards: ShardReader) -> None:
    """Refuse scores of pictures without labels.

    Raises:
        UserError: they are asked for.
    """
    of_scores = config.mode == "best" or config.output is not None or config.predictions is None
    if not shards.index.class_sets and of_scores:
        raise UserError(
            f"{shards.folder}: its pictures have no labels, so nothing can be scored; for predictions alone give "
            "predictions=FOLDER with mode=single or mode=ensemble, and no output"
        )


def _prepared(config: Evaluate, inputs: Inputs, ensemble: Sequence[Predictor], scores: str | None) -> Scoring:
    """Print what is about to be scored, and open what it takes."""
    first, shards, form = ensemble[0].trained, inputs.shards, config.prediction_format
    statistics = files = None
    named, note = inputs.named_classes(first), ""
    plan = {"predictions": f"{config.predictions}, {form}" if config.predictions else "", "scores": scores or ""}
    if config.statistics_from is not None:
        plan["statistics"], statistics = config.statistics_from, open_shards(config.statistics_from, cache=inputs.cache)
        require_same_on_ranks(statistics.fingerprint(), "statistics_from")
    if config.predictions is not None:
        values = values_of(named or first.classes, form)
        note = note_on_raw_ids(first) if form == "raw_ids" and named is None else ""
        files = PredictionFiles(Path(config.predictions), shards, form, values)
    workers = Workers(config.workers, config.timeout_minutes, progress=note_progress)
    scoring = Scoring(shards, statistics, files, Path(config.experiments), workers)
    print_plan(f"{'scoring' if scoring.is_labelled else 'predicting'} ({config.mode})", shards, ensemble, plan)
    if note:
        print_on_main(note)
    return scoring


def _evaluate_once(config: Evaluate, inputs: Inputs) -> dict[str, str]:
    """Score one network or an ensemble; returns what was made."""
    _refuse_unwritable("output", config.output and Path(config.output).parent)
    _refuse_unwritable("predictions", config.predictions)
    paths = config.checkpoints if config.mode == "ensemble" else [str(config.checkpoint)]
    weights = config.ensemble_weights or [1.0] * len(paths)
    loaded = [replace(inputs.load(path), weight=weight) for path, weight in zip(paths, weights, strict=True)]
    ensemble = with_common_size(loaded)
    scoring = _prepared(config, inputs, ensemble, config.output)
    scores = score_networks(ensemble, scoring)
    made = {"predictions": config.predictions or ""}
    if not scoring.is_labelled:
        return {**made, "scores": "none: the pictures have no labels"}
    if is_main():
        origin: dict[str, Any] = {"checkpoint": paths[0], "step": ensemble[0].trained.step}
        if config.mode == "ensemble":
            origin = {"checkpoints": paths, "weights": weights}
        statistics = scoring.statistics
        origin["data"], origin["data_fingerprint"] = _name_of(inputs.shards), inputs.shards.fingerprint()
        origin["statistics_from"] = None if statistics is None else statistics.fingerprint()
        if config.output is not None:
            write_json(Path(config.output), {**scores, **origin})
        keep_end()
        curves = write_score_curves(ensemble, scores, scoring)
        made |= {"scores": config.output or "", "curves": "" if curves is None else f"tensorboard --logdir {curves}"}
    print_on_main(score_table({" + ".join(one.title for one in ensemble): scores}))
    return made


def _evaluate_snapshots(config: Evaluate, inputs: Inputs) -> dict[str, str]:
    """Score the checkpoints of a run that are not scored yet, all under the same conditions, and name the best."""
    run, index = Path(str(config.checkpoint)), inputs.shards.index
    kept = Path(config.output or run / "scores" / f"{index.dataset}_{index.split}.json")
    first = first_snapshot(run, config.wait_minutes, inputs.load)
    scoring = _prepared(config, inputs, [first], str(kept))
    with_curves = is_main()

    def scoring_of(folder: Path) -> Scoring:
        files = scoring.files and replace(scoring.files, folder=scoring.files.folder / folder.name)
        return replace(scoring, files=files)

    def is_done(folder: Path, known: dict[str, Any]) -> bool:
        files = scoring_of(folder).files
        return files is None or (known.get("prediction_format", "colors") == files.form and files.are_written())

    def score(folder: Path) -> dict[str, Any]:
        nonlocal with_curves
        _refuse_unwritable("output", kept.parent)
        files = scoring_of(folder).files
        _refuse_unwritable("predictions", None if files is None else files.folder)
        ensemble = [replace(first, trained=inputs.load(folder).trained)]
        scores = score_networks(ensemble, scoring_of(folder))
        if with_curves:
            # Where they cannot be written, one warning is enough.
            with_curves = write_score_curves(ensemble, scores, scoring_of(folder)) is not None
        form = config.prediction_format
        return scores if form == "colors" else {**scores, "prediction_format": form}

    scores = score_snapshots(run, kept, _made_with(first, scoring), config.wait_minutes, score, is_done)
    best = best_step(scores)
    print_on_main(score_table({f"step {step}": one for step, one in sorted(scores.items())}))
    print_on_main(f"best: step {best}, mIoU {percent(scores[best]['miou'])}; all scores are in {kept}")
    following = f"checkpoint={checkpoint_folder(run, best)} target.path=… output=…"
    made = {"scores": str(kept), "predictions": config.predictions or ""}
    return {**made, "next": f"esl-dist pseudo-label {following}"}


def _refuse_unwritable(setting: str, folder: str | Path | None) -> None:
    """Refuse, on the main rank, a folder into which no files can be written."""
    if folder is not None and is_main() and not is_writable(Path(folder)):
        where = Path(folder).absolute()
        raise UserError(f"{setting}: cannot write into {where}; choose another place as {setting}=…")


def _name_of(shards: ShardReader) -> str:
    return f"{shards.index.dataset} {shards.index.split}"


def _made_with(predictor: Predictor, scoring: Scoring) -> dict[str, Any]:
    """Return what scores depend on besides the weights."""
    statistics = scoring.statistics
    return {
        "data": scoring.shards.fingerprint(),
        "data_name": _name_of(scoring.shards),
        "size": None if predictor.size is None else list(predictor.size),
        "statistics_from": None if statistics is None else statistics.fingerprint(),
        "domain": predictor.statistics if statistics is None else "target",
        "precision": predictor.precision,
        "device": predictor.device.type,
    }
