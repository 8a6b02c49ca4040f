"""Pseudo-labels (ESL, arXiv 2006.08658, section 3): label = argmax, kept where the network may be trusted.

Trust is an entropy at most its class's threshold (ESL), or a highest softmax score at least its class's (the paper's
baseline). Probabilities are taken at the network's resolution, *then* upsampled, as the published program does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from esl_dist.adaptation.entropy import HIGHEST_LEVEL, median_levels, quantise
from esl_dist.adaptation.losses import LEAST_PROBABILITY, entropy_of_positive
from esl_dist.models.row_tiles import highest_class, resized_rows


@dataclass(frozen=True)
class Trust:
    """What decides whether a pixel is trusted.

    Attributes:
        score: probabilities above 0 (batch, classes, …) → score in [0, 1] (batch, …).
        low_is_trusted: whether scores up to the threshold are trusted (entropy) or those from it on (confidence).
    """

    score: Callable[[Tensor], Tensor]
    low_is_trusted: bool


TRUST = {
    "entropy": Trust(entropy_of_positive, low_is_trusted=True),
    "confidence": Trust(lambda probabilities: probabilities.amax(1), low_is_trusted=False),
}


@dataclass(frozen=True)
class Threshold:
    """A class's threshold: as a score in [0, 1], and as the last level that is trusted."""

    score: float
    level: int


def label_and_score(logits: Tensor, size: tuple[int, int], trust: Trust) -> tuple[Tensor, Tensor]:
    """Predict labels and the levels of their scores.

    Args:
        logits: (batch, classes, height, width) at the network's resolution.
        size: height and width of the labels.
        trust: which score.

    Returns:
        train ids, uint8, and levels in [0, 65535], uint16; both (batch, *size).
    """
    shape = (logits.shape[0], *size)
    labels, levels = (logits.new_empty(shape, dtype=kind) for kind in (torch.uint8, torch.uint16))
    for rows, probabilities in resized_rows(positive_probabilities(logits), size):
        labels[:, rows] = highest_class(probabilities)
        levels[:, rows] = quantise(trust.score(probabilities))
    return labels, levels


def positive_probabilities(logits: Tensor) -> Tensor:
    """Return the softmax of logits over dimension 1, above 0, as `Trust.score` takes it."""
    return F.softmax(logits, dim=1).clamp_(min=LEAST_PROBABILITY)


def thresholds(histograms: Tensor, trust: Trust, bound: float) -> list[Threshold]:
    """Return each class's threshold: its median level, but no stricter than `bound`.

    Args:
        histograms: int64 (classes, 65536), over the whole data set (`esl_dist.adaptation.entropy`).
        trust: which score the histograms count.
        bound: least entropy threshold (0.1 in the paper), or highest confidence threshold (0.9); also the threshold of
            a class that is never predicted.
    """
    # A level lies on the trusted side of the bound up to (from) this one; round() keeps 0.2 · 65535 at 13107.
    exact = round(bound * HIGHEST_LEVEL, 6)
    bound_level = math.floor(exact) if trust.low_is_trusted else math.ceil(exact)
    result = []
    for median in median_levels(histograms):
        binds = median is None or (median < exact if trust.low_is_trusted else median > exact)
        if median is None or binds:
            result.append(Threshold(bound, bound_level))
        else:
            result.append(Threshold(median / HIGHEST_LEVEL, median))
    return result


def keep_trusted(labels: Tensor, levels: Tensor, limits: list[Threshold], trust: Trust) -> Tensor:
    """Return the pseudo-labels: `labels` where the level is trusted in its class, `IGNORE_INDEX` elsewhere; uint8."""
    by_class = torch.tensor([threshold.level for threshold in limits], dtype=torch.int32, device=labels.device)
    limit = by_class.index_select(0, labels.flatten().to(torch.int32)).view(labels.shape)
    own = levels.to(torch.int32)
    trusted = own <= limit if trust.low_is_trusted else own >= limit
    # In `IGNORE_INDEX` all bits are set; torch.where takes three times as long.
    return labels.to(torch.uint8) | (trusted.to(torch.uint8) - 1)


def kept_pixels(histograms: Tensor, limits: list[Threshold], trust: Trust) -> list[int]:
    """Return how many pixels of each class `keep_trusted` keeps, read off the histograms."""
    return [
        int(counts[: limit.level + 1].sum() if trust.low_is_trusted else counts[limit.level :].sum())
        for counts, limit in zip(histograms, limits, strict=True)
    ]
