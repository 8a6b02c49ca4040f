"""The whole loop on Toytown: draw, pack, train, pseudo-label, score, one table (`make demo`).

Source only and AdvEnt are trained once, and then gone on with for as many steps: with nothing new, with ESL's
pseudo-labels, by self-training. So a gain of these can be told from that of a longer training.

It starts the programs a user would start, one after another, and prints each command. A stopped demo goes on where it
stopped; a finished one only prints its table.
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
    from esl_dist.config import Demo
    from esl_dist.programs.demo import main
    from esl_dist.stop_signals import own_process

    own_process()
    run_program(Demo, main)
