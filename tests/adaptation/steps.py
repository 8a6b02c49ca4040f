"""One step of a method on tiny networks in float64, for tests of methods: made here, and its passes noted.

    step = make_step("minent", target=domain_batch(2, labels=False))
    passes, logits = noted_passes("minent", step)

A new method's formulas are held to `logits` as in `test_methods.py`.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import SEGMENTATION, MicroBatch, Networks, Normaliser, Precision, Step
from esl_dist.config import Domain
from esl_dist.data.loading import Batch
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise
from esl_dist.training.agreement import local_valid_pixels

CLASSES, IMAGES, SIZE = 3, 4, (32, 64)
PLAIN = Precision(contextlib.nullcontext, lambda loss, network: loss.backward())


def build(method: str = "advent", options: settings.Method | None = None) -> Networks:
    """Return a method's networks in training mode, with batch-norm statistics per domain and small discriminators."""
    torch.manual_seed(0)
    network = DeepLab("tiny", CLASSES, True, True)
    initialise(network)
    options = replace(options or settings.Method(), discriminator_channels=2)
    return build_networks(METHODS[method], network, CLASSES, options).double().train()


def domain_batch(seed: int, labels: bool) -> Batch:
    """Return four images whose labelled pixels differ much: all, one row, a corner, none."""
    random = torch.Generator().manual_seed(seed)
    images = 50 * torch.randn(IMAGES, 3, *SIZE, generator=random, dtype=torch.float64)
    train_ids = torch.randint(0, CLASSES, (IMAGES, *SIZE), generator=random).to(torch.uint8)
    train_ids[1, 1:] = 255
    train_ids[2, 3:, 5:] = 255
    train_ids[3] = 255
    return Batch(
        images=images,
        labels=train_ids if labels else None,
        valid_pixels=(train_ids != 255).sum((1, 2)) if labels else torch.zeros(IMAGES, dtype=torch.int64),
        positions=torch.arange(IMAGES),
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * IMAGES, dtype=torch.float64),
        mirrored=torch.zeros(IMAGES, dtype=torch.bool),
    )


def micro_batch(source: Batch, target: Batch | None) -> MicroBatch:
    return MicroBatch(source, target, seed=0, step=0, places=range(IMAGES))


def normaliser(*own: MicroBatch) -> Normaliser:
    """Return that of a global batch which is these micro-batches."""
    return Normaliser(local_valid_pixels(own), IMAGES)


def make_step(
    method: str, target: Batch | None = None, options: settings.Method | None = None, precision: Precision = PLAIN
) -> Step:
    """Return a step whose global batch is one micro-batch, of a labelled source and, maybe, of a target."""
    own = micro_batch(domain_batch(1, labels=True), target)
    return Step(build(method, options), own, normaliser(own), options or settings.Method(name=method), precision)


class Pass(NamedTuple):
    """A backward pass: the network it was asked for, the loss, and the networks whose parameters got a gradient."""

    network: str
    loss: float
    reached: list[str]


def noted_passes(method: str, step: Step) -> tuple[list[Pass], dict[Domain, dict[str, Tensor]]]:
    """Make a method's passes.

    Returns:
        Its backward passes, and the segmentation network's logits at its own resolution, by domain and level.
    """
    passes: list[Pass] = []
    logits: dict[Domain, dict[str, Tensor]] = {}

    def backward(loss: Tensor, network: str) -> None:
        step.networks.zero_grad(set_to_none=True)
        loss.backward()
        passes.append(Pass(network, float(loss.detach()), [*_with_gradient(step.networks)]))

    step.networks[SEGMENTATION].register_forward_hook(
        lambda _, inputs, output: logits.update({inputs[1]: {level: one.detach() for level, one in output.items()}})
    )
    METHODS[method].passes(replace(step, precision=replace(step.precision, backward=backward)))
    return passes, logits


def _with_gradient(networks: Networks) -> Iterable[str]:
    for name, network in networks.items():
        if any(parameter.grad is not None for parameter in network.parameters()):
            yield name
