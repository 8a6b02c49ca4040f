"""Train a network, or go on with a run."""

from esl_dist.config import Train
from esl_dist.early import give_interrupt_back
from esl_dist.ranks.launchers import asked_of_launcher


def main(config: Train) -> None:
    """Train, or go on with, the run that `config` names."""
    from esl_dist.training.contradictions import check_inputs, check_training

    asked_of_launcher(config.precision)
    check_training(config)
    check_inputs(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.ranks.session import joined_ranks
    from esl_dist.runs.run_record import RunRecord
    from esl_dist.training.loop import train
    from esl_dist.training.stop_request import stop_request

    give_interrupt_back()
    with (
        RunRecord() as record,
        stop_request() as request,
        joined_ranks(config.timeout_minutes, config.precision) as ranks,
    ):
        train(config, ranks, request, record)
