"""Score networks: `accelerate launch launch/evaluate.py checkpoint=… data.path=… output=scores.json`.

Modes: one network, a weighted ensemble, or every checkpoint of a run and the best of them. Pictures without labels give
predictions and no scores.
"""

import os
import sys

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from esl_dist.early import end_at_interrupt, give_interrupt_back

if __name__ == "__main__":
    # What follows takes its time to import.
    end_at_interrupt()

from esl_dist.command_line import run_program
from esl_dist.config import Evaluate
from esl_dist.ranks.launchers import asked_of_launcher


def main(config: Evaluate) -> None:
    """Print the table of scores, write them as JSON and to TensorBoard."""
    from esl_dist.inference.contradictions import check_evaluation

    asked_of_launcher(config.precision)
    check_evaluation(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.inference.evaluation import evaluate
    from esl_dist.inference.inputs import on_ranks

    give_interrupt_back()
    on_ranks(config, evaluate)


if __name__ == "__main__":
    run_program(Evaluate, main)
