"""One training step of AdvEnt's scheme (arXiv 1811.12833, algorithm of the published program), for every method.

1. source: cross-entropy against the labels; backward.
2. target: the method's loss, and cross-entropy against pseudo-labels if there are any; backward.
3. discriminators: the method's loss on the predictions of 1 and 2, detached; backward.

Source and target go through the network in separate passes, so that batch norm sees one domain at a time. Only
gradients are added here; `esl_dist.training.optimisation.update` uses them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.losses import cross_entropy
from esl_dist.adaptation.methods import Method
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch
from esl_dist.models.batch_norm import Domain
from esl_dist.models.deeplab import DeepLab, Logits, upsample
from esl_dist.ranks.collectives import note_progress

Losses = dict[str, Tensor]
"""Name → this rank's share of the global batch's loss, detached, before its weight."""


@dataclass(frozen=True)
class Networks:
    """The networks of a run: the segmentation network and a discriminator for each level (none in some methods)."""

    segmentation: DeepLab
    discriminators: nn.ModuleDict


@dataclass(frozen=True)
class Precision:
    """Mixed precision: a context for forward passes, and the backward pass of a loss for the network of that name."""

    autocast: Callable[[], AbstractContextManager[None]]
    backward: Callable[[Tensor, str], None]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the networks at once: samples of the source, and of the target if the method looks at it."""

    source: Batch
    target: Batch | None


def local_valid_pixels(passes: Sequence[MicroBatch]) -> Tensor:
    """Count this rank's labelled pixels in a step: int64 (2,), source and target."""
    counts = torch.zeros(2, dtype=torch.int64)
    for one in passes:
        for domain, batch in enumerate((one.source, one.target)):
            if batch is not None and batch["labels"] is not None:
                counts[domain] += (batch["labels"] != IGNORE_INDEX).sum().cpu()
    return counts


def add_gradients(
    networks: Networks,
    method: Method,
    weights: settings.Method,
    passes: Sequence[MicroBatch],
    valid_pixels: Tensor,
    images: int,
    precision: Precision,
) -> Losses:
    """Run every forward and backward pass of a step.

    Args:
        networks: in training mode, on the device of the batches.
        method: its losses.
        weights: the losses' weights.
        passes: this rank's part of the global batch, in passes of which each is as large as the others.
        valid_pixels: labelled pixels of source and target in the global batch, int64 (2,).
        images: images of each domain in the global batch.
        precision: see `Precision`.
    """
    total: Losses = {}
    for one in passes:
        losses, source_logits = _source_pass(networks, weights, one.source, valid_pixels[0], precision)
        if one.target is not None:
            more, target_logits = _target_pass(
                networks, method, weights, one.target, valid_pixels[1], images, precision
            )
            losses |= more
            if method.discriminator_loss is not None:
                losses |= _discriminator_pass(networks, method, source_logits, target_logits, images, precision)
        for name, loss in losses.items():
            total[name] = total[name] + loss if name in total else loss
        note_progress()
    return total


def _source_pass(
    networks: Networks, weights: settings.Method, batch: Batch, valid_pixels: Tensor, precision: Precision
) -> tuple[Losses, Logits]:
    assert batch["labels"] is not None
    logits = _upsampled_logits(networks.segmentation, batch, "source", batch["labels"].shape[1:], precision)
    losses = {
        f"source_cross_entropy/{level}": cross_entropy(logits[level], batch["labels"], valid_pixels) for level in logits
    }
    _backward(
        {name: (loss, _at_level(weights.cross_entropy, name)) for name, loss in losses.items()},
        precision,
        "segmentation",
    )
    return _detached(losses), _detached(logits)


def _target_pass(
    networks: Networks,
    method: Method,
    weights: settings.Method,
    batch: Batch,
    valid_pixels: Tensor,
    images: int,
    precision: Precision,
) -> tuple[Losses, Logits]:
    labels = batch["labels"]
    size = batch["images"].shape[2:] if labels is None else labels.shape[1:]
    logits = _upsampled_logits(networks.segmentation, batch, "target", size, precision)
    weighted: dict[str, tuple[Tensor, float]] = {}
    for level, level_logits in logits.items():
        if method.target_loss is not None:
            discriminator = networks.discriminators[level] if method.discriminator_loss is not None else None
            loss = method.target_loss(level_logits, discriminator, images)
            weighted[f"target_{weights.name}/{level}"] = loss, _at_level(weights.target, level)
        if labels is not None:
            loss = cross_entropy(level_logits, labels, valid_pixels)
            weighted[f"target_cross_entropy/{level}"] = loss, _at_level(weights.cross_entropy, level)
    _backward(weighted, precision, "segmentation")
    return _detached({name: loss for name, (loss, _) in weighted.items()}), _detached(logits)


def _discriminator_pass(
    networks: Networks, method: Method, source: Logits, target: Logits, images: int, precision: Precision
) -> Losses:
    assert method.discriminator_loss is not None
    losses = {}
    for level, discriminator in networks.discriminators.items():
        loss = method.discriminator_loss(source[level], target[level], discriminator, images)
        losses[f"discriminator/{level}"] = loss
    _backward({name: (loss, 1.0) for name, loss in losses.items()}, precision, "discriminators")
    return _detached(losses)


def _upsampled_logits(network: DeepLab, batch: Batch, domain: Domain, size: torch.Size, precision: Precision) -> Logits:
    """Return logits at label size, in float32 at least: entropies and losses do not bear half precision."""
    with precision.autocast():
        logits = network(batch["images"], domain)
    return {level: upsample(_at_least_float32(scores), size) for level, scores in logits.items()}


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _backward(weighted: dict[str, tuple[Tensor, float]], precision: Precision, network: str) -> None:
    precision.backward(torch.stack([loss * weight for loss, weight in weighted.values()]).sum(), network)


def _at_level(weights: settings.LevelWeights, name: str) -> float:
    return weights.main if name.endswith("main") else weights.auxiliary


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}
