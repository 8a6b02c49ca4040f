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


def label_and_score(logits: Tensor, size: tuple[int, int], *trusts: Trust) -> tuple[Tensor, ...]:
    """Predict labels and the levels of their scores.

    Args:
        logits: (batch, classes, height, width) at the network's resolution.
        size: height and width of the labels.
        trusts: which scores.

    Returns:
        train ids, uint8, and for each score levels in [0, 65535], uint16; all (batch, *size).
    """
    shape = (logits.shape[0], *size)
    labels = logits.new_empty(shape, dtype=torch.uint8)
    levels = [logits.new_empty(shape, dtype=torch.uint16) for _ in trusts]
    for rows, probabilities in resized_rows(positive_probabilities(logits), size):
        labels[:, rows] = highest_class(probabilities)
        for own, trust in zip(levels, trusts, strict=True):
            own[:, rows] = quantise(trust.score(probabilities))
    return labels, *levels


def exact_level(bound: float) -> float:
    """Return the place of a bound in [0, 1] among the levels; round() keeps 0.2 · 65535 at 13107."""
    return round(bound * HIGHEST_LEVEL, 6)


def level_of_bound(bound: float, trust: Trust) -> int:
    """Return the last level that is trusted where a bound in [0, 1] is the threshold."""
    return math.floor(exact_level(bound)) if trust.low_is_trusted else math.ceil(exact_level(bound))


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
    exact, result = exact_level(bound), []
    for median in median_levels(histograms):
        binds = median is None or (median < exact if trust.low_is_trusted else median > exact)
        if median is None or binds:
            result.append(Threshold(bound, level_of_bound(bound, trust)))
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
