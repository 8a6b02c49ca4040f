"""A job one of whose ranks takes its time with each piece of its work: `work_slowly.py WHAT SECONDS PROGRAM words…`.

With saves it is rank 0, which writes them, else rank 1.
"""

import os
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

from esl_dist.adaptation.methods import advent
from esl_dist.data.loading import Samples
from esl_dist.inference.labelling import levels
from esl_dist.prediction import predictions
from esl_dist.runs import async_save
from esl_dist.training import loop

PLACES: dict[str, tuple[Any, str]] = {
    "saves": (async_save, "save_checkpoint"),
    "weights": (loop, "write_weights"),
    "passes": (advent, "source_pass"),
    "samples": (Samples, "read"),
    "predictions": (levels, "label_and_score"),
    "scores": (predictions, "confusion_matrix"),
}
what, seconds = sys.argv[1], float(sys.argv[2])
sys.argv = sys.argv[3:]


def slowly(plain: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return plain(*arguments)

    return slow


if os.environ["RANK"] == ("0" if what in ("saves", "weights") else "1"):
    owner, name = PLACES[what]
    setattr(owner, name, slowly(getattr(owner, name)))
runpy.run_path(sys.argv[0], run_name="__main__")
