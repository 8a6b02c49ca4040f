"""A training whose disk is full from its third save on: `full_disk.py BYTES PROGRAM words…`.

From then on, no file may grow larger than BYTES.
"""

import resource
import runpy
import sys
from typing import Any

from esl_dist.runs import async_save

limit = int(sys.argv[1])
sys.argv = sys.argv[2:]
plain = async_save.save_checkpoint
saves = 0


def limited(*arguments: Any) -> Any:
    global saves
    saves += 1
    if saves == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return plain(*arguments)


async_save.save_checkpoint = limited
runpy.run_path(sys.argv[0], run_name="__main__")
