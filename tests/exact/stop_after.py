"""A training whose last rank is asked to stop in a step of the run: `stop_after.py STEP PROGRAM words…`."""

import os
import runpy
import signal
import sys
from typing import Any

from esl_dist.training import loop

step = int(sys.argv[1])
sys.argv = sys.argv[2:]
agree = loop.agree


def asked_to_stop(*arguments: Any) -> Any:
    is_last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if arguments[-1] == f"step {step}" and is_last_rank:
        os.kill(os.getpid(), signal.SIGTERM)
    return agree(*arguments)


loop.agree = asked_to_stop
runpy.run_path(sys.argv[0], run_name="__main__")
