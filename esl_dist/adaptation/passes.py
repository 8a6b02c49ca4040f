"""The passes of a training step, as a method makes them: predict, compute losses, minimise.

Source and target go through the network in separate passes, so that batch norm sees one domain at a time. A pass adds
gradients; what becomes of them, when all passes of a step are made, is no matter of the method.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist import config as settings
from esl_dist.adaptation.losses import at_least_float32, cross_entropy
from esl_dist.config import DOMAINS, Domain
from esl_dist.data.loading import Batch
from esl_dist.models.resizing import upsample
from esl_dist.models.segmentation import Logits

SEGMENTATION = "segmentation"
"""Name of the network that is trained in the end for its own sake."""

Networks = nn.ModuleDict
"""Name → network: `SEGMENTATION`, and those that the method adds."""

LogProbabilities = dict[str, Tensor]
"""Level → ln p at label size, (batch, classes, height, width), in float32 at least."""

Losses = dict[str, Tensor]
"""Name → this rank's share of the global batch's loss, detached, before its weight."""

WeightedLosses = dict[str, tuple[Tensor, float]]
"""Name (`<loss>/<level>`) → this rank's share of the global batch's loss, and its weight."""

Counts = dict[str, Tensor]
"""Name → what a method counts, int64, any shape, on the device: of a rank or, once summed, of the global batch."""

SHARE = "share of "
"""Begins the names of counts that are shown alone: of a share, int64 (2,), its part and its whole."""

LevelLoss = Callable[[str, Tensor], Tensor]
"""(level, ln p at label size) → this rank's share of a loss."""


@dataclass(frozen=True)
class Precision:
    """Mixed precision: a context for forward passes, and the backward pass of a loss for the network of that name.

    What comes out of a network is float32 at least before a loss or an entropy is taken of it.
    """

    autocast: Callable[[], AbstractContextManager[None]]
    backward: Callable[[Tensor, str], None]


@dataclass(frozen=True)
class Normaliser:
    """What losses are divided by, counted over the global batch.

    Attributes:
        valid_pixels: labelled pixels of source and target, int64 (2,).
        images: images of each domain.
    """

    valid_pixels: Tensor
    images: int


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the networks at once, and their place in the training.

    Attributes:
        source: labelled samples.
        target: as many samples of the target; None where nothing looks at it.
        seed: that of the run.
        step: steps done before this one.
        places: of these samples in the global batch; the same in both domains.
    """

    source: Batch
    target: Batch | None
    seed: int
    step: int
    places: Sequence[int]

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return a generator (on the CPU) for each sample, for what a method draws at random.

        It is a function of seed, step, place and purpose alone. So neither the number of ranks nor a restart shows in
        what is drawn, as long as nothing else is drawn from.
        """
        return [_generator(f"{self.seed} {self.step} {place} {purpose}") for place in self.places]


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))


@dataclass(frozen=True)
class Step:
    """A rank's part of a training step: one micro-batch, all networks in training mode, and what losses are made with.

    Attributes:
        networks: on the device of the batch.
        batch: see `MicroBatch`.
        normaliser: see `Normaliser`.
        options: the method's settings.
        precision: see `Precision`.
        losses: those minimised so far, summed over the rank's micro-batches.
        counts: those of `count` so far, likewise; their sums over ranks come to `Method.after_update`.
    """

    networks: Networks
    batch: MicroBatch
    normaliser: Normaliser
    options: settings.Method
    precision: Precision
    losses: Losses = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)

    def samples(self, domain: Domain) -> Batch:
        """Return the samples of a domain.

        Raises:
            ValueError: no target is read.
        """
        samples = self.batch.source if domain == "source" else self.batch.target
        if samples is None:
            raise ValueError("no target is read; write `needs_target = True` in the method's class")
        return samples

    def network(self, name: str) -> nn.Module:
        """Return the network of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.networks:
            known = ", ".join(self.networks)
            raise ValueError(f"there is no network {name!r}; name one of {known}, or return it from `networks`")
        return self.networks[name]

    def predict(
        self,
        domain: Domain,
        network: str = SEGMENTATION,
        images: Tensor | None = None,
        size: tuple[int, int] | torch.Size | None = None,
    ) -> LogProbabilities:
        """Return ln p of a network at label size, for every loss and entropy of this pass.

        Args:
            domain: whose samples, and batch-norm statistics.
            network: a segmentation network's name.
            images: to look at in place of the domain's, changed by the method; as these are normalised.
            size: height and width of the result in place of the labels'.

        Raises:
            ValueError: no target is read, or there is no such network.
        """
        samples = self.samples(domain)
        labels = samples["labels"]
        if size is None:
            size = samples["images"].shape[2:] if labels is None else labels.shape[1:]
        with self.precision.autocast():
            logits: Logits = self.network(network)(samples["images"] if images is None else images, domain)
        return {level: log_probabilities_at(scores, size) for level, scores in logits.items()}

    def count(self, name: str, counts: Tensor) -> None:
        """Add to the counts of this name, int64; every rank counts under the same names in every step."""
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts

    def show_share(self, name: str, part: Tensor, whole: int) -> None:
        """Have the log show a share, over all ranks and the steps between two entries.

        Args:
            name: its curve's, `<group>/<name>`.
            part: a whole number, on the device.
            whole: of which it is a part.
        """
        # A list of numbers would have to be sent to the device, for which the host would wait.
        self.count(SHARE + name, torch.stack([part, torch.full_like(part, whole)]))

    def minimise(self, network: str, weighted: WeightedLosses) -> None:
        """Add the gradients of weighted losses, and note the losses.

        Raises:
            ValueError: there is no such network, or no loss.
        """
        self.network(network)
        if not weighted:
            raise ValueError(f"minimise({network!r}, …) got no loss; give it one, or leave this pass out on every rank")
        self.precision.backward(torch.stack([loss * weight for loss, weight in weighted.values()]).sum(), network)
        for name, (loss, _) in weighted.items():
            self.losses[name] = self.losses[name] + loss.detach() if name in self.losses else loss.detach()

    def cross_entropy(self, domain: Domain, level: str, log_probabilities: Tensor) -> WeightedLosses:
        """Return the cross-entropy at one level against a domain's labels; nothing where it has none."""
        labels = self.samples(domain)["labels"]
        if labels is None:
            return {}
        loss = cross_entropy(log_probabilities, labels, self.normaliser.valid_pixels[DOMAINS.index(domain)])
        return {f"{domain}_cross_entropy/{level}": (loss, at_level(self.options.cross_entropy, level))}


def log_probabilities_at(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Return ln p at a size, height and width, of logits (batch, classes, …, …) in any precision."""
    # The softmax over classes would copy large maps whose channels lie side by side.
    return F.log_softmax(upsample(at_least_float32(logits).contiguous(), size), dim=1)


def at_level(weights: settings.LevelWeights, level: str) -> float:
    """Return the weight of a loss at a level."""
    return weights.main if level == "main" else weights.auxiliary


def source_pass(step: Step) -> LogProbabilities:
    """Learn from the source's labels at each level; returns ln p, detached."""
    predicted = step.predict("source")
    weighted: WeightedLosses = {}
    for level, log_probabilities in predicted.items():
        weighted |= step.cross_entropy("source", level, log_probabilities)
    step.minimise(SEGMENTATION, weighted)
    return {level: log_probabilities.detach() for level, log_probabilities in predicted.items()}


def target_pass(step: Step, name: str = "", loss: LevelLoss | None = None) -> None:
    """Learn from the target: by a method's loss if it has one, and from pseudo-labels if there are any.

    Args:
        step: its batch has a target.
        name: of the loss in the log.
        loss: the method's, weighted by its settings.
    """
    weighted: WeightedLosses = {}
    for level, log_probabilities in step.predict("target").items():
        if loss is not None:
            weighted[f"target_{name}/{level}"] = loss(level, log_probabilities), at_level(step.options.target, level)
        weighted |= step.cross_entropy("target", level, log_probabilities)
    step.minimise(SEGMENTATION, weighted)
