"""Score one network, a weighted ensemble, or every checkpoint of a run and the best of them."""

from esl_dist.config import Evaluate
from esl_dist.early import give_interrupt_back
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
