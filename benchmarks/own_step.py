"""The project's AdvEnt step outside of a training, on pictures of noise: what benchmarks compare with `plain_step`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.adaptation.passes import MicroBatch, Normaliser, Precision
from esl_dist.data.images import Size
from esl_dist.data.labels import IGNORE_INDEX, SemanticClass
from esl_dist.data.loading import Batch, HostBatch, on_device
from esl_dist.ranks.collectives import sum_over_ranks, world_size
from esl_dist.training.agreement import local_valid_pixels
from esl_dist.training.optimisation import Updating
from esl_dist.training.setup import State, build_state
from esl_dist.training.step import add_gradients

CLASSES = tuple(SemanticClass(f"class {number}", (number, 0, 0), (number,)) for number in range(19))
"""As many as Cityscapes has."""

LABELLED = 9
"""Of the classes, how many are in labels: as many as Toytown has, whose networks may then be given the same noise."""

METHOD = METHODS["advent"]
CPU = torch.device("cpu")


def configuration(architecture: str, channels: int = 64) -> settings.Train:
    """Return the published training's settings, for another network and discriminators of so many channels."""
    method = settings.Method(discriminator_channels=channels)
    return settings.Train(seed=0, network=settings.Network(architecture=architecture), method=method)


def state_of(config: settings.Train) -> State:
    """Return networks with random weights, the same on every rank, and optimisers at their first rates."""
    state = build_state(config, METHOD, CLASSES, CPU, with_start=False)
    set_rates(state.optimizers, 0, config.optimizer)
    return state


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

    def __call__(self) -> None:
        """Take a step."""
        self.updating.begin_step()
        self.gradients()
        self.updating.update("a step")

    def gradients(self) -> None:
        """Make the passes; one sum over the ranks comes before them, as in a training."""
        valid_pixels = sum_over_ranks(local_valid_pixels([self.batch]))
        normaliser = Normaliser(valid_pixels, len(self.batch.places) * world_size())
        precision = Precision(self.autocast, self.updating.backward)
        add_gradients(self.networks, METHOD, self.options, [self.batch], normaliser, precision)


def micro_batch(source: Size, target: Size, places: range, dtype: torch.dtype = torch.float32) -> MicroBatch:
    """Return noise in both domains, the source's with labels; a picture is a function of its place."""
    batches = _noise(source, places, 0, labelled=True), _noise(target, places, 1, labelled=False)
    for batch in batches:
        batch["images"] = batch["images"].to(dtype)
    return MicroBatch(*batches, seed=0, step=0, places=places)


def tensors_of(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a plain step takes of a batch: pictures and labels of the source, pictures of the target."""
    assert batch.target is not None
    assert batch.source["labels"] is not None
    return batch.source["images"], batch.source["labels"], batch.target["images"]


def _noise(size: Size, places: range, domain: int, labelled: bool) -> Batch:
    """Return pictures of noise with another number of labelled pixels in each."""
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
    )
    return on_device(host, CPU)
