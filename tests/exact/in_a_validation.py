"""A training that is sent a signal in a validation: `in_a_validation.py SIGNAL STEP PROGRAM words…`.

SIGKILL goes to every rank, another signal to the last one.
"""

import os
import runpy
import signal
import sys
from typing import Any

from esl_dist.training import validation

number, step = int(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]
validate, counts = validation.validate, validation._counts
is_last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
places = []


def noted(what: Any, place: str, request: Any) -> Any:
    places.append(place)
    return validate(what, place, request)


def signalled(*arguments: Any) -> Any:
    if (is_last_rank or number == signal.SIGKILL) and places[-1] == f"the validation after step {step}":
        os.kill(os.getpid(), number)
    return counts(*arguments)


validation.validate, validation._counts = noted, signalled
runpy.run_path(sys.argv[0], run_name="__main__")
