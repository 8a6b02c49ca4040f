"""A training whose last rank gets a signal at one place of its start: `signal_at_start.py PLACE SIGNAL PROGRAM …`."""

import os
import runpy
import signal
import sys
from typing import Any

from esl_dist.ranks import launchers as launching
from esl_dist.ranks import session as distributed
from esl_dist.training import setup

PLACES: dict[str, tuple[list[Any], str]] = {
    "the launcher": ([launching, distributed], "start_missing_processes"),
    "the meeting": ([distributed], "meet"),
    "the devices": ([distributed], "_accelerator"),
    "the shards": ([setup], "open_training_data"),
    "the checkpoint": ([setup], "load_newest"),
}
place, number = sys.argv[1], signal.Signals[sys.argv[2]]
sys.argv = sys.argv[3:]
owners, name = PLACES[place]
plain = getattr(owners[0], name)


def signalled(*arguments: Any) -> Any:
    os.kill(os.getpid(), number)
    return plain(*arguments)


if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
    for owner in owners:
        setattr(owner, name, signalled)
runpy.run_path(sys.argv[0], run_name="__main__")
