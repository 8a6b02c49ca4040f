"""Score networks: `accelerate launch launch/evaluate.py checkpoint=… data.path=… output=scores.json`.

Modes: one network, a weighted ensemble, or every snapshot of a run and the best of them.
"""

import sys
from pathlib import Path
from typing import Any

import torch

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esl_dist.command_line import run_program
from esl_dist.config import Evaluate
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.engine.distributed import (
    compute_the_same_on_any_number_of_ranks,
    is_main,
    joined_ranks,
    refuse_disagreement,
)
from esl_dist.engine.scoring import are_painted, score_networks, write_score_curves
from esl_dist.engine.snapshots import best_step, score_snapshots
from esl_dist.engine.trained import TrainedNetwork, load_trained
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.reporting.scores import percent, score_table


def main(config: Evaluate) -> None:
    """Print the table of scores, write them as JSON and to TensorBoard."""
    check(config)
    with joined_ranks(config.timeout_minutes) as ranks:
        evaluate(config, ranks.accelerator.device)


def evaluate(config: Evaluate, device: torch.device) -> None:
    """Score on the ranks that have joined."""
    compute_the_same_on_any_number_of_ranks(device)
    shards = open_shards(config.data.path)
    refuse_disagreement(shards.fingerprint(), "shards")
    if config.mode == "best":
        evaluate_snapshots(config, shards, device)
    else:
        evaluate_once(config, shards, device)


def check(config: Evaluate) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: naming the settings.
    """
    if config.mode == "ensemble":
        if not config.checkpoints:
            raise UserError("mode=ensemble needs its networks: checkpoints=[…,…]")
        if len(config.ensemble_weights) not in (0, len(config.checkpoints)):
            raise UserError(
                f"ensemble_weights={config.ensemble_weights} is impossible: expected one for each of the "
                f"{len(config.checkpoints)} checkpoints, or none"
            )
        if config.ensemble_weights and sum(config.ensemble_weights) == 0:
            raise UserError("ensemble_weights are all 0; expected one above 0")
        if config.checkpoint is not None:
            raise UserError("mode=ensemble takes checkpoints=[…,…], not checkpoint=…")
    else:
        if config.checkpoint is None:
            raise UserError(f"mode={config.mode} needs a network: checkpoint=…")
        if config.checkpoints or config.ensemble_weights:
            raise UserError("checkpoints and ensemble_weights are for mode=ensemble")
    if config.output is not None and Path(config.output).is_dir():
        raise UserError(f"output={config.output}: a folder; expected the name of a JSON file")
    if config.wait_minutes and config.mode != "best":
        raise UserError("wait_minutes is for mode=best")


def evaluate_once(config: Evaluate, shards: ShardReader, device: torch.device) -> None:
    """Score one network or an ensemble."""
    paths = config.checkpoints if config.mode == "ensemble" else [str(config.checkpoint)]
    networks = [load_trained(path, shards.index.class_sets, config.class_set, device) for path in paths]
    weights = config.ensemble_weights or [1.0] * len(networks)
    predictions = None if config.predictions is None else Path(config.predictions)
    scores = score_networks(networks, weights, shards, config, predictions, device)
    if is_main():
        print(score_table({" + ".join(title(one) for one in networks): scores}))
        if config.output is not None:
            origin: dict[str, Any] = {"checkpoint": paths[0], "step": networks[0].step}
            if config.mode == "ensemble":
                origin = {"checkpoints": paths, "weights": weights}
            write_json(Path(config.output), {**scores, **origin})
        write_score_curves(networks, scores, shards, Path(config.experiments), predictions)


def title(network: TrainedNetwork) -> str:
    """Return a network's name in a table."""
    return network.name if network.step is None else f"{network.name} ({network.step})"


def evaluate_snapshots(config: Evaluate, shards: ShardReader, device: torch.device) -> None:
    """Score the snapshots of a run that are not scored yet, and name the best."""
    run = Path(str(config.checkpoint))
    data = f"{shards.index.dataset}_{shards.index.split}"
    kept = run / "scores" / f"{data}.json" if config.output is None else Path(config.output)
    statistics = None if config.statistics_from is None else open_shards(config.statistics_from).fingerprint()
    made_with = {"data": shards.fingerprint(), "size": config.data.size, "statistics_from": statistics}

    def predictions_of(folder: Path) -> Path | None:
        return None if config.predictions is None else Path(config.predictions) / folder.name

    def is_painted(folder: Path) -> bool:
        predictions = predictions_of(folder)
        return predictions is None or are_painted(shards, predictions)

    def score(folder: Path) -> dict[str, Any]:
        network = load_trained(folder, shards.index.class_sets, config.class_set, device)
        scores = score_networks([network], [1.0], shards, config, predictions_of(folder), device)
        if is_main():
            print(f"{network.name}, step {network.step}: mIoU {percent(scores['miou'])}", flush=True)
            write_score_curves([network], scores, shards, Path(config.experiments), predictions_of(folder))
        return scores

    scores = score_snapshots(run, kept, made_with, config.wait_minutes, score, is_painted)
    if is_main():
        best = best_step(scores)
        print(score_table({f"step {step}": one for step, one in sorted(scores.items())}))
        print(f"best: step {best}, mIoU {percent(scores[best]['miou'])}; all scores are in {kept}")


if __name__ == "__main__":
    run_program(Evaluate, main)
