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
    if config.prediction_format != "colors" and config.predictions is None:
        raise UserError(f"prediction_format={config.prediction_format} is for predictions=FOLDER")
    if config.domain == "source" and config.statistics_from is not None:
        raise UserError("domain=source contradicts statistics_from=…, which are the statistics used; leave out one")
    if config.output is not None and Path(config.output).is_dir():
        raise UserError(f"output={config.output}: a folder; expected the name of a JSON file")
    if config.wait_minutes and config.mode != "best":
        raise UserError("wait_minutes is for mode=best")


if __name__ == "__main__":
    run_program(Evaluate, main)
