"""The pseudo-label job with time to kill it, and its scratch folder kept: `label_slowly.py PROGRAM words…`."""

import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

from esl_dist.inference import labelling

SECONDS = 0.03
"""A picture and pass."""


def slowly(plain: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(SECONDS)
        return plain(*arguments)

    return slow


labelling.label_and_score = slowly(labelling.label_and_score)
labelling.keep_trusted = slowly(labelling.keep_trusted)
labelling.shutil.rmtree = lambda *_, **__: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
