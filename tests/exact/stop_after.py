"""A training whose last rank is asked to stop in a step of the run: `stop_after.py STEP PROGRAM words…`."""

import os
import runpy
import signal
import sys
from typing import Any

from esl_dist.training import loop as trainer

step = int(sys.argv[1])
sys.argv = sys.argv[2:]
agree = trainer._agree


def asked_to_stop(passes: Any, config: Any, request: Any, place: str) -> Any:
    if place == f"step {step}" and int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return agree(passes, config, request, place)


trainer._agree = asked_to_stop
runpy.run_path(sys.argv[0], run_name="__main__")
