"""A training in which something happens in a step on its last rank: `in_a_step.py WHAT STEP PROGRAM words…`.

WHAT is "signal in passes", "signal in update" (after the ranks have begun to tell each other of the next step), or
"fail to read", an error in reading the batch of STEP, which is while the step before runs. A save is waited for.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from esl_dist.adaptation.passes import MicroBatch
from esl_dist.errors import CorruptSampleError
from esl_dist.runs.async_save import BackgroundSaver
from esl_dist.runs.checkpoints import Checkpoint
from esl_dist.training import loop
from esl_dist.training.agreement import ComingStep

what, step = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[3:]
save, add_gradients, update, prepare = BackgroundSaver.save, loop.add_gradients, loop._update, loop.prepare
is_last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1


def signalled_passes(*arguments: Any) -> Any:
    # Those of the first batch have the number 0.
    if arguments[3][0].step == step - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return add_gradients(*arguments)


def signalled_update(training: Any, done: int, *sums: Any) -> bool:
    if done == step:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(training, done, *sums)


def failing(read: Callable[[], Sequence[MicroBatch]], *arguments: Any) -> ComingStep:
    def fail() -> Sequence[MicroBatch]:
        raise CorruptSampleError(f"the batch of step {step} is damaged")

    return prepare(fail if arguments[-1] == f"step {step}" else read, *arguments)


def finished_save(saver: BackgroundSaver, checkpoint: Checkpoint, best: int | None) -> None:
    save(saver, checkpoint, best)
    # A process of these tests ends at once, and its threads with it.
    saver.finish()


BackgroundSaver.save = finished_save  # type: ignore[method-assign]
if is_last_rank:
    match what:
        case "signal in passes":
            loop.add_gradients = signalled_passes
        case "signal in update":
            loop._update = signalled_update
        case "fail to read":
            loop.prepare = failing
runpy.run_path(sys.argv[0], run_name="__main__")
