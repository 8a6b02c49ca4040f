"""Label the target: `accelerate launch launch/pseudo_label.py checkpoint=… target.path=… output=…`."""

import os
import sys

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from esl_dist.early import end_at_interrupt, give_interrupt_back

if __name__ == "__main__":
    # What follows takes its time to import.
    end_at_interrupt()

from esl_dist.command_line import run_program
from esl_dist.config import PseudoLabel
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


if __name__ == "__main__":
    run_program(PseudoLabel, main)
