"""The training runs of the published programs, through this project's functions, in one process or on several ranks."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.losses import SOURCE, domain_loss
from esl_dist.adaptation.methods import METHODS, advent
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.adaptation.passes import Losses, MicroBatch, Networks, Normaliser, Precision
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch, network_input
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.discriminator import build_discriminator
from esl_dist.ranks.collectives import rank, sum_over_ranks, world_size
from esl_dist.training.agreement import local_valid_pixels
from esl_dist.training.optimisation import Updating
from esl_dist.training.step import add_gradients
from tests.reference.arrays import arrays, filled, on_device

CLASSES = 19
PLAIN = Precision(contextlib.nullcontext, lambda loss, network: loss.backward())

OPTIONS = settings.Optimizer(learning_rate=5e-5, schedule_steps=20)
"""What the description of the runs sets; the rest is as published, and so by default here."""

LEVELS = {"main": "main", "auxiliary": "aux"}
LOSSES = {
    "source_cross_entropy": "loss_seg_src",
    "target_cross_entropy": "loss_seg_trg",
    "target_minent": "loss_ent",
    "target_advent": "loss_adv_trg",
    "discriminator": "loss_d",
}
"""Names here → names in the files."""


@dataclass(frozen=True)
class Run:
    """What the name of a run stands for."""

    method: str
    pseudo_labels: bool


RUNS = {
    "train_esl_batch2": Run("advent", pseudo_labels=True),
    "train_esl": Run("advent", pseudo_labels=True),
    "train_advent": Run("advent", pseudo_labels=False),
    "train_advent_single_level": Run("advent", pseudo_labels=False),
    "train_minent": Run("minent", pseudo_labels=False),
}


@dataclass(frozen=True)
class Outcome:
    """What a run leaves, or should leave, under the names in the files.

    losses: name → the global batch's loss at each step; norms: of the segmentation network's tensors, by name; tensors:
    those that were recorded whole, by name.
    """

    losses: dict[str, NDArray[np.float64]]
    norms: dict[str, float]
    tensors: dict[str, NDArray[np.float64]]


def recorded(name: str) -> Outcome:
    """Read what the published program left."""
    file = arrays(name)
    norms = dict(zip(file.pop("final/names").tolist(), file.pop("final/l2").tolist(), strict=True))
    return Outcome(_below("loss/", file), norms, _below("final/", file))


def train(name: str) -> Outcome:
    """Train as the run called `name` was trained; on several ranks, each takes its part of every batch."""
    expected = recorded(name)
    auxiliary_head = any(tensor.startswith("layer5") for tensor in expected.norms)
    segmentation = filled(DeepLab("resnet101", CLASSES, auxiliary_head, False))
    assert isinstance(segmentation, DeepLab)
    discriminators = _discriminators(RUNS[name].method)
    # The published program builds a discriminator for a level that is not there too, and never trains it.
    trained = {level: discriminators[level] for level in segmentation.levels if level in discriminators}
    networks = nn.ModuleDict({"segmentation": segmentation})
    if trained:
        networks["discriminators"] = nn.ModuleDict(trained)
    with _target_half_recorded():
        losses = _train(networks, name, len(expected.losses["loss_seg_src_main"]))
    state = segmentation.state_dict()
    whole = state | {
        f"discriminator_{LEVELS[level]}/{tensor}": values
        for level, discriminator in discriminators.items()
        for tensor, values in discriminator.state_dict().items()
    }
    return Outcome(
        losses,
        {tensor: float(state[tensor].norm()) for tensor in expected.norms},
        {tensor: whole[tensor].cpu().numpy() for tensor in expected.tensors},
    )


def _below(prefix: str, file: dict[str, NDArray]) -> dict[str, NDArray[np.float64]]:
    return {name.removeprefix(prefix): values for name, values in file.items() if name.startswith(prefix)}


def _discriminators(method: str) -> dict[str, nn.Module]:
    if method != "advent":
        return {}
    return {level: filled(build_discriminator(CLASSES), f"{prefix}.") for level, prefix in LEVELS.items()}


def _train(networks: Networks, name: str, steps: int) -> dict[str, NDArray[np.float64]]:
    """Take every step of a run; returns the losses under the names in the files."""
    run, images, batches = RUNS[name], int(arrays(name)["batch_size"]), arrays("batches")
    method = METHODS[run.method]
    weights = settings.Method(name=run.method)
    optimizers = method.optimizers(networks, OPTIONS)
    updating = Updating(networks, optimizers, None)
    history: list[Losses] = []
    for step in range(steps):
        set_rates(optimizers, step, OPTIONS)
        passes = [_own_pass(batches, step, images, run.pseudo_labels)]
        normaliser = Normaliser(sum_over_ranks(local_valid_pixels(passes)), images)
        history.append(add_gradients(networks, method, weights, passes, normaliser, PLAIN).losses)
        updating.update(name)
    return {
        _name_in_file(loss): sum_over_ranks(torch.stack([losses[loss] for losses in history])).cpu().numpy()
        for loss in history[0]
    }


@contextlib.contextmanager
def _target_half_recorded() -> Iterator[None]:
    """Give the discriminators' loss the value of its target half alone, as it was recorded, and the same gradients."""
    plain = advent.tell_domains_apart

    def target_half(source: Tensor, target: Tensor, discriminator: nn.Module, images: int) -> Tensor:
        with torch.no_grad():
            source_half = domain_loss(discriminator(source), SOURCE, images) / 2
        return plain(source, target, discriminator, images) - source_half

    advent.tell_domains_apart = target_half
    try:
        yield
    finally:
        advent.tell_domains_apart = plain


def _own_pass(batches: dict[str, NDArray], step: int, images: int, pseudo_labels: bool) -> MicroBatch:
    """Return this rank's part of a step's batch."""
    share = images // world_size()
    first = step * images + rank() * share
    rows = slice(first, first + share)
    target_labels = batches["target_pseudo_labels"][rows] if pseudo_labels else None
    return MicroBatch(
        _batch(batches["source_images"][rows], batches["source_labels"][rows]),
        _batch(batches["target_images"][rows], target_labels),
        seed=0,
        step=step,
        places=range(rank() * share, (rank() + 1) * share),
    )


def _batch(images: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> Batch:
    counts = np.zeros(len(images), np.int64) if labels is None else (labels != IGNORE_INDEX).sum((1, 2))
    return Batch(
        images=network_input(on_device(images.transpose(0, 2, 3, 1))).double(),
        labels=None if labels is None else on_device(labels),
        valid_pixels=torch.from_numpy(counts),
        positions=torch.arange(len(images)),
    )


def _name_in_file(loss: str) -> str:
    kind, level = loss.split("/")
    return f"{LOSSES[kind]}_{LEVELS[level]}"
