"""Label pictures of one's own by a trained network: `esl-dist predict checkpoint=… pictures=… output=…`."""

from esl_dist.config import Predict
from esl_dist.early import give_interrupt_back
from esl_dist.ranks.launchers import asked_of_launcher


def main(config: Predict) -> None:
    """Write the predictions and print where they are."""
    from esl_dist.inference.contradictions import check_predicting

    asked_of_launcher(config.precision)
    check_predicting(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.inference.inputs import on_ranks
    from esl_dist.inference.predicting import predict

    give_interrupt_back()
    on_ranks(config, predict)
