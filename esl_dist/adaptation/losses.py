"""The losses. Each returns this rank's share of the global batch's loss: the shares of all ranks and passes add up.

A mean over valid pixels is not the mean of the ranks' means, for one rank may have few of them or none. So a loss here
is a sum, divided by a normaliser that the caller counts over the global batch. p are softmax probabilities, C is the
number of classes, and p·log p is 0 where p is 0.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist.data.labels import IGNORE_INDEX

SOURCE, TARGET = 0.0, 1.0
"""The discriminator's labels of the two domains."""

_TINY = 1e-30


def cross_entropy(logits: Tensor, labels: Tensor, valid_pixels: Tensor | int) -> Tensor:
    """Sum of −ln p[label] over valid pixels, divided by `valid_pixels`.

    Args:
        logits: (batch, classes, height, width).
        labels: train ids (batch, height, width), integer; `IGNORE_INDEX` is not counted.
        valid_pixels: pixels with another label in the global batch; none at all gives a loss of 0.
    """
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / max(int(valid_pixels), 1)


def self_information(logits: Tensor) -> Tensor:
    """Weighted self-information −p·log2 p / log2 C of each class (AdvEnt, equation 5), shape as `logits`, in [0, 1]."""
    probabilities = F.softmax(logits, dim=1)
    information: Tensor = -probabilities * torch.log2(probabilities + _TINY) / math.log2(logits.shape[1])
    return information


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Entropy −Σ p·ln p / ln C over dimension 1 (ESL, equation 3), in [0, 1]: (batch, classes, …) → (batch, …)."""
    # Of 0, the logarithm of the smallest number: their product is 0. torch.special.entr takes five times as long.
    logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log_()
    return logarithms.mul_(probabilities).sum(1) / -math.log(probabilities.shape[1])


def entropy_loss(logits: Tensor, images: int) -> Tensor:
    """Mean normalised entropy of each image (MinEnt; AdvEnt, equation 4), summed, divided by `images`.

    Args:
        logits: (batch, classes, height, width).
        images: images of this domain in the global batch.
    """
    return self_information(logits).sum(1).mean((1, 2)).sum() / images


def domain_loss(domain_logits: Tensor, domain: float, images: int) -> Tensor:
    """Mean binary cross-entropy of each image's discriminator output (AdvEnt, equations 6 and 7), summed, / `images`.

    Args:
        domain_logits: the discriminator's output, (batch, 1, height, width).
        domain: the label to hold it against, `SOURCE` or `TARGET`.
        images: images of this domain in the global batch.
    """
    labels = torch.full_like(domain_logits, domain)
    losses = F.binary_cross_entropy_with_logits(domain_logits, labels, reduction="none")
    loss: Tensor = losses.mean((1, 2, 3)).sum() / images
    return loss


def without_gradient(network: nn.Module, input: Tensor) -> Tensor:
    """Apply a network whose parameters get no gradient, while its input does; the network itself is not touched."""
    frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return torch.func.functional_call(network, frozen, (input,))  # type: ignore[no-any-return]
