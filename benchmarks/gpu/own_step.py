"""The project's own step outside of a training: networks, optimisers and a batch of noise on one device, one precision.

What a training sets for the whole process (TF32, deterministic kernels) is set around it by `ranks.precision`.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from benchmarks.step_counts import Workload
from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.adaptation.passes import Losses, MicroBatch, Normaliser, Precision
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch, HostBatch, on_device
from esl_dist.models import memory_format
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise
from esl_dist.training.agreement import local_valid_pixels
from esl_dist.training.optimisation import Updating
from esl_dist.training.step import add_gradients

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
        optimizers: changes them before their first step.
        around: is entered around building and timing.
        layout: of the pictures in memory.
    """

    networks: Callable[[nn.ModuleDict], None] = no_change
    optimizers: Callable[[dict[str, Optimizer]], None] = no_change
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    layout: torch.memory_format | None = None


UNCHANGED = Change()


@dataclass(frozen=True)
class OwnStep:
    """A step to take again and again, always on the same batch."""

    networks: nn.ModuleDict
    optimizers: dict[str, Optimizer]
    updating: Updating
    batch: MicroBatch
    precision: Precision
    options: settings.Method

    def __call__(self) -> bool:
        """Take a step; returns whether the networks were updated."""
        self.updating.begin_step()
        self.losses()
        return self.updating.update("a step")

    def losses(self) -> Losses:
        """Make the passes, and with them the gradients."""
        normaliser = Normaliser(local_valid_pixels([self.batch]), len(self.batch.places))
        return add_gradients(self.networks, METHODS["advent"], self.options, [self.batch], normaliser, self.precision)


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
    torch.manual_seed(0)
    network = DeepLab(workload.architecture, workload.classes, workload.auxiliary, per_domain=False)
    initialise(network)
    options = settings.Method(discriminator_channels=workload.channels)
    networks = build_networks(METHODS["advent"], network, workload.classes, options)
    networks = memory_format.on_device(networks.to(given.dtype), given.device).train()
    change.networks(networks)
    optimizers = METHODS["advent"].optimizers(networks, settings.Optimizer())
    set_rates(optimizers, 0, settings.Optimizer())
    change.optimizers(optimizers)
    scaler = None
    if given.precision == "fp16":
        scaler = GradScaler(given.device.type, init_scale=given.scale or 2.0**16)
    updating = Updating(networks, optimizers, scaler)
    return OwnStep(
        networks,
        optimizers,
        updating,
        pictures_of(workload, given, change.layout),
        Precision(lambda: autocast(given), updating.backward),
        options,
    )


def autocast(given: Conditions) -> AbstractContextManager[None]:
    """Return the context of forward passes."""
    return torch.autocast(given.device.type, HALF.get(given.precision), enabled=given.precision in HALF)


def noise(size: tuple[int, int], classes: int, given: Conditions, seed: int) -> Batch:
    """Return pictures of noise and labels, of which a tenth of the pixels has none."""
    width, height = size
    random = torch.Generator().manual_seed(seed)
    shape = (given.pictures, height, width)
    labels = torch.randint(0, classes, shape, generator=random, dtype=torch.uint8)
    labels[:, : height // 10] = IGNORE_INDEX
    sizes = torch.tensor([size] * given.pictures)
    host = HostBatch(
        pictures=torch.randint(0, 256, (*shape, 3), generator=random, dtype=torch.uint8),
        labels=labels,
        valid_pixels=(labels != IGNORE_INDEX).sum((1, 2)),
        positions=torch.arange(given.pictures),
        own_sizes=sizes,
        label_sizes=sizes,
        replaced=torch.zeros(given.pictures, dtype=torch.bool),
    )
    batch = on_device(host, given.device)
    batch["images"] = batch["images"].to(given.dtype)
    return batch


def pictures_of(workload: Workload, given: Conditions, layout: torch.memory_format | None = None) -> MicroBatch:
    """Return a batch of noise of both domains, the source's with labels."""
    source = noise(workload.source, workload.classes, given, seed=1)
    target = noise(workload.target, workload.classes, given, seed=2)
    target["labels"], target["label_sizes"], target["valid_pixels"] = None, None, torch.zeros(given.pictures).long()
    if layout is not None:
        for batch in (source, target):
            batch["images"] = batch["images"].contiguous(memory_format=layout)
    return MicroBatch(source, target, seed=0, step=0, places=range(given.pictures))


def weights_of(networks: nn.ModuleDict) -> dict[str, Tensor]:
    """Return copies of all that networks hold, in float64 on the CPU."""
    return {name: tensor.detach().to("cpu", torch.float64).clone() for name, tensor in networks.state_dict().items()}
