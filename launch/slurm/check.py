"""Refuse settings before a job waits for hours to do it: `check.py train --config FILE key=value …`, and so on.

It looks at what is there at this time: the settings and the shards that they name. What jobs have yet to make, the
words leave out.
"""

import os
import sys

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from esl_dist.early import end_at_interrupt

if __name__ == "__main__":
    # What follows takes seconds to import.
    end_at_interrupt()

from esl_dist.command_line import run_program
from esl_dist.config import Evaluate, PseudoLabel, Train
from esl_dist.doctor.inputs import check_program
from esl_dist.stop_signals import own_process

PROGRAMS: dict[str, type] = {"train": Train, "pseudo_label": PseudoLabel, "evaluate": Evaluate}

if __name__ == "__main__":
    own_process()
    run_program(PROGRAMS[sys.argv.pop(1)], check_program)
