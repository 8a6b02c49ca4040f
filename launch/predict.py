"""Label pictures of one's own: `accelerate launch launch/predict.py checkpoint=… pictures=… output=…`."""

import os
import sys

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from esl_dist.early import end_at_interrupt

if __name__ == "__main__":
    # What follows takes its time to import.
    end_at_interrupt()

    from esl_dist.command_line import run_program
    from esl_dist.config import Predict
    from esl_dist.programs.predict import main
    from esl_dist.stop_signals import own_process

    own_process()
    run_program(Predict, main)
