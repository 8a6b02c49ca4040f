"""A rank of two that share a GPU: `share_gpu.py BACKEND FAULT PROGRAM words…`; the project itself refuses to share one.

BACKEND: gloo, which exchanges tensors of a GPU through the host's memory, or nccl.
FAULT: what befalls rank 1 in its third step: none, kill, mistake or memory. The moment is written to $FAULT_FILE.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from esl_dist.adaptation.methods.advent import AdvEnt
from esl_dist.adaptation.passes import Step
from esl_dist.errors import UserError
from esl_dist.ranks import gpus

FAULTY_STEP, FAULTY_RANK = 3, "1"
TOO_MANY = 2**50
"""Bytes that no device has."""

backend, fault = sys.argv[1:3]
sys.argv = sys.argv[3:]
plain_passes = AdvEnt.passes
steps = 0


def share(*_: object) -> torch.device:
    """Take the first GPU."""
    os.environ["LOCAL_RANK"] = "0"
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def faulty_passes(method: AdvEnt, step: Step) -> None:
    """Make the passes of a step, or what befalls the rank in it."""
    global steps
    steps += 1
    if steps == FAULTY_STEP:
        Path(os.environ["FAULT_FILE"]).write_text(str(time.time()), encoding="utf-8")
        befall(next(step.networks.parameters()).device)
    plain_passes(method, step)


def befall(device: torch.device) -> None:
    """Kill this process, make a mistake of its user's, or ask for more memory than there is."""
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "mistake":
            raise UserError("a mistake that only this rank sees; it is one of the benchmark's")
        case "memory":
            torch.empty(TOO_MANY, dtype=torch.uint8, device=device)


if torch.cuda.is_available():
    share()
    if backend == "gloo":
        # Without this word the ranks exchange tensors over gloo, and compute on the GPU all the same.
        gpus.are_used = lambda *_: False
    else:
        gpus.choose_gpu = share  # type: ignore[assignment]
if fault != "none" and os.environ.get("RANK") == FAULTY_RANK:
    AdvEnt.passes = faulty_passes  # type: ignore[assignment, method-assign]
runpy.run_path(sys.argv[0], run_name="__main__")
