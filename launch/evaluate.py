"""Score networks: `accelerate launch launch/evaluate.py checkpoint=… data.path=… output=scores.json`.

Modes: one network, a weighted ensemble, or every checkpoint of a run and the best of them. Pictures without labels give
predictions and no scores.
"""

import os
import sys

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from esl_dist.early import end_at_interrupt

if __name__ == "__main__":
    # What follows takes its time to import.
    end_at_interrupt()

    from esl_dist.command_line import run_program
    from esl_dist.config import Evaluate
    from esl_dist.programs.evaluate import main
    from esl_dist.stop_signals import own_process

    own_process()
    run_program(Evaluate, main)
