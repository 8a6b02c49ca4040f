"""The project's AdvEnt step outside of a training, on pictures of noise: what benchmarks compare with `plain_step`.

It imports nothing of `runs` or of a training's set-up, so that a machine needs few packages for it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.step_counts import Workload
from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.adaptation.passes import Losses, MicroBatch, Normaliser, Precision
from esl_dist.data.images import Size
from esl_dist.data.labels import IGNORE_INDEX, SemanticClass
from esl_dist.data.loading import Batch, HostBatch, on_device
from esl_dist.models import memory_format
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise
from esl_dist.ranks.collectives import sum_over_ranks, world_size
from esl_dist.training.agreement import local_valid_pixels
from esl_dist.training.optimisation import Updating
from esl_dist.training.step import add_gradients

CLASSES = tuple(SemanticClass(f"class {number}", (number, 0, 0), (number,)) for number in range(19))
"""As many as Cityscapes has."""

LABELLED = 9
"""Of the classes, how many are in labels: as many as Toytown has, whose networks may then be given the same noise."""

METHOD = METHODS["advent"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class OwnStep:
    """A step to take again and again, always on the same pictures.

    Attributes:
        networks: in training mode.
        updating: how their losses become new weights.
        batch: this rank's pictures.
        options: the method's settings.
        autocast: the context of forward passes.
    """

    networks: nn.ModuleDict
    updating: Updating
    batch: MicroBatch
    options: settings.Method
    autocast: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)

    def __call__(self) -> bool:
        """Take a step; returns whether the networks were updated."""
        self.updating.begin_step()
        self.losses()
        return self.updating.update("a step")

    def losses(self) -> Losses:
        """Make the passes, and with them the gradients; one sum over the ranks comes before them, as in a training."""
        valid_pixels = sum_over_ranks(local_valid_pixels([self.batch]))
        normaliser = Normaliser(valid_pixels, len(self.batch.places) * world_size())
        precision = Precision(self.autocast, self.updating.backward)
        return add_gradients(self.networks, METHOD, self.options, [self.batch], normaliser, precision).losses


def networks_of(workload: Workload, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    """Return AdvEnt's networks in training mode with random weights, the same on every rank and device."""
    torch.manual_seed(0)
    network = DeepLab(workload.architecture, workload.classes, workload.auxiliary, per_domain=False)
    initialise(network)
    networks = build_networks(METHOD, network, workload.classes, workload.options())
    return memory_format.on_device(networks.to(dtype), device).train()


def optimizers_of(networks: nn.ModuleDict) -> dict[str, Optimizer]:
    """Return the published training's optimisers at their first rates."""
    optimizers = METHOD.optimizers(networks, settings.Optimizer())
    set_rates(optimizers, 0, settings.Optimizer())
    return optimizers


def build(
    workload: Workload,
    places: range,
    dtype: torch.dtype = torch.float32,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> OwnStep:
    """Return the step on the CPU; `places` are those of this rank's pictures in the global batch."""
    networks = networks_of(workload, dtype=dtype)
    updating = Updating(networks, optimizers_of(networks), None)
    return OwnStep(networks, updating, micro_batch(workload, places, dtype), workload.options(), autocast)


def micro_batch(
    workload: Workload, places: range, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> MicroBatch:
    """Return noise in both domains, the source's with labels; a picture is a function of its place."""
    batches = noise(workload.source, places, 0, device), noise(workload.target, places, 1, device)
    for batch in batches:
        batch["images"] = batch["images"].to(dtype)
    return MicroBatch(*batches, seed=0, step=0, places=places)


def tensors_of(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a plain step takes of a batch: pictures and labels of the source, pictures of the target."""
    assert batch.target is not None
    assert batch.source["labels"] is not None
    return batch.source["images"], batch.source["labels"], batch.target["images"]


def noise(size: Size, places: range, domain: int, device: torch.device) -> Batch:
    """Return pictures of noise, of domain 0 with labels and another number of labelled pixels in each."""
    labelled = domain == 0
    width, height = size
    pictures, labels = [], []
    for place in places:
        random = torch.Generator().manual_seed(2 * place + domain)
        pictures.append(torch.randint(0, 256, (height, width, 3), generator=random, dtype=torch.uint8))
        labels.append(torch.randint(0, LABELLED, (height, width), generator=random, dtype=torch.uint8))
        labels[-1][: (place + 1) * height // 10] = IGNORE_INDEX
    stacked = torch.stack(labels)
    sizes = torch.tensor([size] * len(places))
    host = HostBatch(
        pictures=torch.stack(pictures),
        labels=stacked if labelled else None,
        valid_pixels=(stacked != IGNORE_INDEX).sum((1, 2)) if labelled else torch.zeros(len(places), dtype=torch.int64),
        positions=torch.tensor(places),
        own_sizes=sizes,
        label_sizes=sizes if labelled else None,
        replaced=torch.zeros(len(places), dtype=torch.bool),
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * len(places), dtype=torch.float64),
        mirrored=torch.zeros(len(places), dtype=torch.bool),
    )
    return on_device(host, device)


def weights_of(networks: nn.ModuleDict) -> dict[str, Tensor]:
    """Return copies of all that networks hold but counts, in float64 on the CPU."""
    state = networks.state_dict()
    return {name: one.to("cpu", torch.float64, copy=True) for name, one in state.items() if one.is_floating_point()}
