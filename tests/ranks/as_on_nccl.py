"""Ranks over gloo that part as those over NCCL have to: `as_on_nccl.py how=… gate=FIFO`.

Rank 1 does `how` (rank 0, if that is to work on); the others wait, for a byte from the gate, in a call of C that
nothing interrupts: as for a GPU whose kernels wait for rank 1. What torch does when such a process ends never returns.
"""

import ctypes
import os
import time
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from omegaconf import MISSING

from esl_dist.command_line import run_program
from esl_dist.errors import UserError
from esl_dist.ranks import heartbeat, nccl
from esl_dist.ranks.session import joined_ranks
from esl_dist.stop_signals import own_process

heartbeat.BEAT_SECONDS, heartbeat.SILENT_SECONDS = 0.1, 1.0
nccl.ABORT_SECONDS = 0.2
WORK_SECONDS = 2.0
"""For which rank 0 works on when the others are done; longer than a rank is looked for that does not answer."""

ERRORS = {
    "make a mistake": UserError("shard-000001.tar is gone"),
    "run out of memory": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is "
        "free. Including non-PyTorch memory, this process has 77.90 GiB memory in use."
    ),
    "be wrong": torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be late."),
    "lose a connection": dist.DistBackendError(
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, remote process exited\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
        "Last error:\nsocketPollConnect: connect returned Connection refused\n"
    ),
    "share a GPU": dist.DistBackendError(
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 4f000\n"
    ),
}


@dataclass
class Words:
    """What this program is told."""

    how: str = MISSING
    """What rank 1 does."""
    gate: str = MISSING
    """From which the ranks wait for a byte each."""
    timeout_minutes: float = 10.0
    """How long a rank waits for others."""
    batch_size: int = 1
    """What takes memory."""


def never_returns(*_: object) -> NoReturn:
    time.sleep(600)
    raise AssertionError


def main(words: Words) -> None:
    gate = os.open(words.gate, os.O_RDWR)
    with joined_ranks(words.timeout_minutes):
        if os.environ["RANK"] == "1" and (error := ERRORS.get(words.how)) is not None:
            raise error
        if os.environ["RANK"] == "0" and words.how == "work on":
            time.sleep(WORK_SECONDS)
        print("joined", flush=True)
        ctypes.CDLL(None).read(gate, ctypes.create_string_buffer(1), 1)


if __name__ == "__main__":
    nccl._is_begun = True
    dist.distributed_c10d._abort_process_group = never_returns
    dist.destroy_process_group = never_returns
    own_process()
    run_program(Words, main)
