"""The project's own step on a device, in a precision, with a change: what the stages vary of `benchmarks.own_step`.

What a training sets for the whole process (TF32, deterministic kernels) is set around it by `ranks.precision`.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from benchmarks.own_step import OwnStep, micro_batch, networks_of, optimizers_of
from benchmarks.step_counts import Workload
from esl_dist.adaptation.passes import MicroBatch
from esl_dist.training.optimisation import Updating

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", "bf16")
"""Those that are timed: float32 without TF32, with it, and bfloat16 under autocast."""


def no_change(_: object) -> None:
    """Leave it as it is."""


@dataclass(frozen=True)
class Change:
    """What is otherwise than in the project.

    Attributes:
        networks: changes them, on their device, before they have optimisers.
        optimizers: changes them before their first step, as the project has made them.
        around: is entered around building and timing.
        layout: of the pictures in memory.
    """

    networks: Callable[[nn.ModuleDict], None] = no_change
    optimizers: Callable[[dict[str, Optimizer]], None] = no_change
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    layout: torch.memory_format | None = None


UNCHANGED = Change()


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a step is built.

    Attributes:
        device: where it computes.
        precision: fp32, tf32, bf16 or fp16.
        pictures: of each domain.
        scale: that losses begin with in fp16; None: torch's.
        dtype: of weights and pictures.
    """

    device: torch.device
    precision: str = "fp32"
    pictures: int = 1
    scale: float | None = None
    dtype: torch.dtype = torch.float32


def build(workload: Workload, given: Conditions, change: Change = UNCHANGED) -> OwnStep:
    """Return a step with weights and pictures drawn from fixed seeds, the same on every device."""
    networks = networks_of(workload, given.device, given.dtype)
    change.networks(networks)
    optimizers = optimizers_of(networks)
    scaler = None
    if given.precision == "fp16":
        scaler = GradScaler(given.device.type, init_scale=given.scale or 2.0**16)
    # It fuses them, so what a change does to them comes after.
    updating = Updating(networks, optimizers, scaler)
    change.optimizers(optimizers)
    batch = pictures_of(workload, given, change.layout)
    return OwnStep(networks, updating, batch, workload.options(), lambda: autocast(given))


def autocast(given: Conditions) -> AbstractContextManager[None]:
    """Return the context of forward passes."""
    return torch.autocast(given.device.type, HALF.get(given.precision), enabled=given.precision in HALF)


def pictures_of(workload: Workload, given: Conditions, layout: torch.memory_format | None = None) -> MicroBatch:
    """Return a batch of noise of both domains on the device, the source's with labels."""
    batch = micro_batch(workload, range(given.pictures), given.dtype, given.device)
    if layout is not None:
        for one in (batch.source, batch.target):
            assert one is not None
            one["images"] = one["images"].contiguous(memory_format=layout)
    return batch
