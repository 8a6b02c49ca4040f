"""How far a teacher's labels are trusted: its pixels, and what each of them weighs in the student's loss.

Two rules. *Share* (DACS, arXiv 2007.08702, section 3.2): every pixel has its label, and weighs the share of its
picture's pixels of which the teacher is confident. *Entropy*: a pixel is trusted whose entropy is at most its class's
threshold, the class's median but no less than a floor (ESL, arXiv 2006.08658). There the median is over the whole data
set and a finished network; here over the predictions of the last steps, from histograms that add up over ranks and fade
from step to step. The published share is of a process's batch; here it is of the picture, so that no rank shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist import config as settings
from esl_dist.adaptation.entropy import count_pairs
from esl_dist.adaptation.losses import self_information, weighted_cross_entropy
from esl_dist.adaptation.passes import SEGMENTATION, Step, WeightedLosses, at_level
from esl_dist.adaptation.teacher import TEACHER, build_teacher, taught
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch
from esl_dist.models.row_tiles import highest_class
from esl_dist.models.segmentation import SegmentationNetwork

ENTROPIES = "entropies"
"""Name of the histograms that judge entropies, in checkpoints as among the networks; and of a step's counts."""

TRUSTED = "teacher/trusted"
"""Curve of the share of the target's pixels of which the teacher is trusted."""

LEAST_COUNT = 1e-100
"""Of a class in faded histograms; less is none."""

NO_MARGINS = (0.0, 0.0, 0.0, 0.0)
"""Within them lies all of a picture; what of a part lies beyond it does not."""

LAST_ENTROPY_LEVEL = 1023
"""Level of entropy 1; level l stands for l / 1023. Medians of a network that learns need no finer ones."""


@dataclass(frozen=True)
class Trusted:
    """What the student is to learn of target pictures.

    Attributes:
        labels: train ids (batch, height, width), integer, at the size of the pictures.
        weights: of each pixel in the loss, in [0, 1], same shape.
    """

    labels: Tensor
    weights: Tensor


class Entropies(nn.Module):
    """Faded histograms of the teacher's entropies by predicted class; checkpoints keep them as those of a network.

    Args:
        classes: their number.
    """

    histograms: Tensor

    def __init__(self, classes: int) -> None:
        """Begin with none: float64 (classes, 1024)."""
        super().__init__()
        self.register_buffer("histograms", torch.zeros(classes, LAST_ENTROPY_LEVEL + 1, dtype=torch.float64))

    def add(self, counts: Tensor, memory: float) -> None:
        """Let the counts so far fade to `memory` of themselves, and add a step's, int64, summed over ranks."""
        self.histograms.mul_(memory).add_(counts)
        # The least numbers there are fade no further: of bins that all came down to one, the median would be wrong.
        self.histograms.mul_(self.histograms.sum(1, keepdim=True) > LEAST_COUNT)


def build_teaching(segmentation: SegmentationNetwork, classes: int, options: settings.Teacher) -> dict[str, nn.Module]:
    """Return the teacher of a network and, where entropies are judged, their histograms."""
    found: dict[str, nn.Module] = {TEACHER: build_teacher(segmentation)}
    return found | ({ENTROPIES: Entropies(classes)} if options.trust == "entropy" else {})


def in_words(options: settings.Teacher) -> str:
    """Say how a teacher follows the network, and which of its labels count."""
    average = f"moving average, momentum {options.momentum:g}"
    if options.trust == "share":
        return f"{average}; its labels weigh the share of their picture that it is sure of to {options.confidence:g}"
    where = f"where its entropy is at most the median of the class (at least {options.entropy_floor:g})"
    if options.entropy_as == "weight":
        return f"{average}; its labels weigh the share of their picture {where}"
    return f"{average}; its labels count {where}"


def trusted_labels(step: Step) -> Trusted:
    """Label the step's target pictures: by its teacher, or offline where they have pseudo-labels; without gradient."""
    samples, teacher = step.samples("target"), step.options.teacher
    predicted = taught(step)
    labels = highest_class(predicted)
    seen = within_margins(samples, teacher.margins)
    if teacher.trust == "share":
        by_pixel = False
        trusted = confident(predicted, labels, teacher.confidence)
    else:
        by_pixel = teacher.entropy_as == "mask"
        entropies, levels = step.network(ENTROPIES), entropy_levels(predicted)
        assert isinstance(entropies, Entropies)
        # By the steps before this one: what it counts itself is summed over the ranks meanwhile, and nobody waits.
        trusted = levels <= limits(entropies.histograms, teacher.entropy_floor)[labels]
        step.count(ENTROPIES, counted(labels, levels, seen, len(entropies.histograms)))
    # As published, margins count in a picture's share.
    trusted = trusted & (seen if by_pixel else within_margins(samples, NO_MARGINS))
    step.show_share(TRUSTED, trusted.sum(), trusted.numel())
    by_teacher = Trusted(labels, weights(trusted, seen, by_pixel).to(predicted.dtype))
    return offline_first(by_teacher, samples["labels"], seen)


def confident(predicted: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """Say where p of the predicted class is `confidence` at least: bool (batch, height, width).

    Args:
        predicted: ln p, (batch, classes, height, width).
        labels: the predicted classes, int64 (batch, height, width).
        confidence: in [0, 1].
    """
    return predicted.gather(1, labels[:, None])[:, 0].exp() >= confidence


def entropy_levels(predicted: Tensor) -> Tensor:
    """Return the levels of normalised entropies: ln p (batch, classes, …) → int32 (batch, …) in [0, 1023].

    Where ln p is NaN it is 1023, the least certain, and an index all the same: that training diverged, its losses tell.
    """
    entropies = self_information(predicted).sum(1).nan_to_num_(1.0)
    return entropies.clamp_(0, 1).mul_(LAST_ENTROPY_LEVEL).round_().to(torch.int32)


def counted(labels: Tensor, levels: Tensor, seen: Tensor, classes: int) -> Tensor:
    """Count the levels by predicted class where pixels are `seen`: int64 (classes, 1024)."""
    # The others are counted as one class more: to choose the former, the host would have to know how many there are.
    counts = torch.zeros(classes + 1, LAST_ENTROPY_LEVEL + 1, dtype=torch.int64, device=labels.device)
    count_pairs(counts, torch.where(seen, labels, classes), levels)
    return counts[:classes]


def limits(histograms: Tensor, floor: float) -> Tensor:
    """Return the last level that is trusted, by class: int64 (classes,).

    It is the class's median, the first level up to which more than half of its pixels lie, or that of the floor if this
    is higher or the class has no pixels.

    Args:
        histograms: (classes, 1024), counts that may have faded.
        floor: least threshold, as an entropy in [0, 1].
    """
    up_to = histograms.cumsum(1)
    medians = (2 * up_to <= up_to[:, -1:]).sum(1)
    # round() keeps a floor that is a level's in spite of its last digit.
    least = math.floor(round(floor * LAST_ENTROPY_LEVEL, 6))
    return torch.where(up_to[:, -1] > 0, medians.clamp(min=least), least)


def weights(trusted: Tensor, seen: Tensor, by_pixel: bool) -> Tensor:
    """Return what pixels weigh: (batch, height, width), 0 where they are not `seen`.

    Args:
        trusted: bool (batch, height, width).
        seen: bool, likewise.
        by_pixel: whether a trusted pixel weighs 1 and another 0; else each weighs the share of its picture's pixels
            that are trusted, seen or not.
    """
    if by_pixel:
        return trusted & seen
    shares = trusted.sum((1, 2)) / math.prod(trusted.shape[1:])
    return seen * shares[:, None, None]


def within_margins(samples: Batch, margins: Sequence[float]) -> Tensor:
    """Say which pixels' centres lie in the picture and within its margins: bool (batch, height, width), on its device.

    Args:
        samples: whose windows say what part of the picture is seen, and whether mirrored.
        margins: top, bottom, left, right, as shares of the whole picture.
    """
    top, bottom, left, right = margins
    images = samples["images"]
    height, width = images.shape[2:]
    windows, mirrored = samples["windows"], samples["mirrored"]
    rows = _inside(windows[:, 1], windows[:, 3], height, (top, 1 - bottom))
    columns = _inside(windows[:, 0], windows[:, 2], width, (left, 1 - right))
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows, columns = (one.to(images.device, non_blocking=True) for one in (rows, columns))
    return rows[:, :, None] & columns[:, None, :]


def _inside(first: Tensor, last: Tensor, count: int, bounds: tuple[float, float]) -> Tensor:
    """Say which centres of `count` pixels from `first` to `last`, each (batch,), lie in bounds: bool (batch, count)."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    places = first[:, None] + (last - first)[:, None] * centres
    return (places >= bounds[0]) & (places < bounds[1])


def offline_first(trusted: Trusted, labels: Tensor | None, seen: Tensor) -> Trusted:
    """Put pseudo-labels, where there are any for `seen` pixels, in the place of the teacher's, with a weight of 1."""
    if labels is None:
        return trusted
    labels = labels_at(labels, trusted.labels.shape[1:])
    given = (labels != IGNORE_INDEX) & seen
    return Trusted(
        torch.where(given, labels.to(trusted.labels.dtype), trusted.labels),
        torch.where(given, 1.0, trusted.weights),
    )


def labels_at(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Return labels (batch, height, width) at a size, each pixel's the nearest; at their own size, themselves."""
    if labels.shape[1:] == tuple(size):
        return labels
    return F.interpolate(labels[:, None], tuple(size), mode="nearest-exact")[:, 0]


def learn_from(step: Step, name: str, images: Tensor, trusted: Trusted, weight: float = 1.0) -> None:
    """Make a pass over changed target pictures, to learn from labels by their weights at each level.

    Args:
        step: of which this is a pass.
        name: of the loss in the log.
        images: as the network is to see them.
        trusted: their labels.
        weight: of this loss, times those of the cross-entropy.
    """
    losses: WeightedLosses = {}
    for level, predicted in step.predict("target", images=images, size=images.shape[2:]).items():
        loss = weighted_cross_entropy(predicted, trusted.labels, trusted.weights, step.normaliser.images)
        losses[f"{name}/{level}"] = loss, weight * at_level(step.options.cross_entropy, level)
    step.minimise(SEGMENTATION, losses)
