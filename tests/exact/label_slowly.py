"""The pseudo-label job with time to kill it, whose unfinished pieces stay: `label_slowly.py PROGRAM words…`."""

import runpy
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from esl_dist.inference.labelling import labels, levels

SECONDS = 0.03
"""A picture and pass."""


def slowly(plain: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(SECONDS)
        return plain(*arguments)

    return slow


levels.label_and_score = slowly(levels.label_and_score)
labels.keep_trusted = slowly(labels.keep_trusted)
shutil.rmtree = lambda *_, **__: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
