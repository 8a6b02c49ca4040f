"""Refuse settings before a job waits for hours to do it: `check.py train --config FILE key=value …`, and so on.

It looks at what is there at this time: the settings and the shards that they name. What jobs have yet to make, the
words leave out.
"""

import os
import sys

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from esl_dist.early import end_at_interrupt, give_interrupt_back

if __name__ == "__main__":
    # What follows takes seconds to import.
    end_at_interrupt()

from esl_dist.command_line import run_program
from esl_dist.config import Evaluate, PseudoLabel, Train
from esl_dist.stop_signals import own_process

PROGRAMS: dict[str, type] = {"train": Train, "pseudo_label": PseudoLabel, "evaluate": Evaluate}


def check(config: Train | PseudoLabel | Evaluate) -> None:
    """Refuse what the program would refuse on one process.

    Raises:
        UserError: settings that cannot be, or shards that are missing, damaged or do not fit each other.
    """
    from esl_dist.data.cache import cache_of
    from esl_dist.data.shards import open_shards
    from esl_dist.training.contradictions import check_training

    match config:
        case Train():
            check_training(config)
            # Not before: torch takes seconds, and what is wrong with the settings is known without it.
            from esl_dist.adaptation.methods import METHODS
            from esl_dist.training.data import open_training_data

            give_interrupt_back()
            open_training_data(config, METHODS[config.method.name])
        case PseudoLabel() | Evaluate():
            pictures = config.target if isinstance(config, PseudoLabel) else config.data
            cache = cache_of(config.cache.folder, config.cache.gigabytes, config.timeout_minutes, lambda: None)
            open_shards(pictures.path, cache=cache)


if __name__ == "__main__":
    own_process()
    run_program(PROGRAMS[sys.argv.pop(1)], check)
