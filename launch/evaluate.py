"""Score networks: `accelerate launch launch/evaluate.py checkpoint=… data.path=… output=scores.json`.

Modes: one network, a weighted ensemble, or every checkpoint of a run and the best of them. Pictures without labels give
predictions and no scores.
"""

import sys
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esl_dist.early import end_at_interrupt

if __name__ == "__main__":
    # What follows takes seconds to import.
    end_at_interrupt()

from esl_dist.command_line import run_program
from esl_dist.config import Evaluate
from esl_dist.errors import UserError
from esl_dist.inference.evaluation import evaluate
from esl_dist.inference.predictor import on_ranks


def main(config: Evaluate) -> None:
    """Print the table of scores, write them as JSON and to TensorBoard."""
    check(config)
    on_ranks(config, evaluate)


def check(config: Evaluate) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: naming the settings.
    """
    networks, weights, is_ensemble = len(config.checkpoints), config.ensemble_weights, config.mode == "ensemble"
    contradictions = {
        "mode=ensemble needs its networks: checkpoints=[…,…]": is_ensemble and not networks,
        f"ensemble_weights={weights} is impossible: expected one for each of the {networks} checkpoints, or none": (
            is_ensemble and len(weights) not in (0, networks)
        ),
        "ensemble_weights are all 0; expected one above 0": is_ensemble and weights and not any(weights),
        "mode=ensemble takes checkpoints=[…,…], not checkpoint=…": is_ensemble and config.checkpoint is not None,
        f"mode={config.mode} needs a network: checkpoint=…": not is_ensemble and config.checkpoint is None,
        "checkpoints and ensemble_weights are for mode=ensemble": not is_ensemble and (networks or weights),
        f"prediction_format={config.prediction_format} is for predictions=FOLDER": (
            config.prediction_format != "colors" and config.predictions is None
        ),
        "domain=source contradicts statistics_from=…, which are the statistics used; leave out one": (
            config.domain == "source" and config.statistics_from is not None
        ),
        f"output={config.output}: a folder; expected the name of a JSON file": (
            config.output is not None and Path(config.output).is_dir()
        ),
        "wait_minutes is for mode=best": config.wait_minutes and config.mode != "best",
    }
    for message, contradicts in contradictions.items():
        if contradicts:
            raise UserError(message)


if __name__ == "__main__":
    run_program(Evaluate, main)
