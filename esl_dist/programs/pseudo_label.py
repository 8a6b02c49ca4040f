"""Label the target by a trained network, where it may be trusted."""

from esl_dist.config import PseudoLabel
from esl_dist.early import give_interrupt_back
from esl_dist.ranks.launchers import asked_of_launcher


def main(config: PseudoLabel) -> None:
    """Write the pseudo-labels and print what was kept."""
    from esl_dist.inference.contradictions import check_labelling

    asked_of_launcher(config.precision)
    check_labelling(config)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.inference.inputs import on_ranks
    from esl_dist.inference.pseudo_labelling import label

    give_interrupt_back()
    on_ranks(config, label)
