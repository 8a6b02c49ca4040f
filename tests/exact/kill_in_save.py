"""Kill this process inside a save: `kill_in_save.py FUNCTION CALL PROGRAM words…`, after that call of that function."""

import os
import runpy
import signal
import sys
from typing import Any

import torch

from esl_dist.runs import checkpoints

function, call, program = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
places = {
    "torch.save": (torch, "save"),
    "os.replace": (checkpoints.os, "replace"),
    "shutil.rmtree": (checkpoints.shutil, "rmtree"),
}
owner, name = places.get(function, (checkpoints, function))
plain = getattr(owner, name)
calls = 0


def killing(*arguments: Any, **options: Any) -> Any:
    global calls
    result = plain(*arguments, **options)
    calls += "checkpoints" in str(arguments)
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(owner, name, killing)
runpy.run_path(program, run_name="__main__")
