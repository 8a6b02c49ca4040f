"""A training whose last rank is asked to stop in a step of the run: `stop_after.py STEP PROGRAM words…`."""

import os
import runpy
import signal
import sys
from typing import Any

from esl_dist.training import loop

step = int(sys.argv[1])
sys.argv = sys.argv[2:]
prepare = loop.prepare


def asked_to_stop(*arguments: Any) -> Any:
    is_last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    # The ranks begin to tell each other of the next step in the middle of this one.
    if arguments[-1] == f"step {step + 1}" and is_last_rank:
        os.kill(os.getpid(), signal.SIGTERM)
    return prepare(*arguments)


loop.prepare = asked_to_stop
runpy.run_path(sys.argv[0], run_name="__main__")
