"""A training whose first checkpoint is held back until later steps have begun: `hold_save.py PROGRAM words…`.

If the training waits for that checkpoint, neither ends, and after a while the save fails.
"""

import runpy
import sys
import threading
from itertools import count
from typing import Any

from esl_dist.errors import UserError
from esl_dist.runs import async_save
from esl_dist.runs.checkpoints import Checkpoint
from esl_dist.training import loop

HELD_UNTIL_STEP = 4
PATIENCE_SECONDS = 20

sys.argv = sys.argv[1:]
save_checkpoint, add_gradients = async_save.save_checkpoint, loop.add_gradients
steps, later_step = count(1), threading.Event()


def counted(*arguments: Any) -> Any:
    if next(steps) == HELD_UNTIL_STEP:
        later_step.set()
    return add_gradients(*arguments)


def held(run: Any, checkpoint: Checkpoint, *options: Any) -> Any:
    if not later_step.wait(PATIENCE_SECONDS):
        raise UserError(f"step {HELD_UNTIL_STEP} did not begin before the checkpoint of {checkpoint.step} was written")
    print(f"the checkpoint of step {checkpoint.step} is written after step {HELD_UNTIL_STEP} began", flush=True)
    return save_checkpoint(run, checkpoint, *options)


loop.add_gradients, async_save.save_checkpoint = counted, held
runpy.run_path(sys.argv[0], run_name="__main__")
