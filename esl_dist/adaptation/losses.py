"""The losses. Each returns this rank's share of the global batch's loss: the shares of all ranks and passes add up.

A mean over valid pixels is not the mean of the ranks' means, for one rank may have few of them or none. So a loss here
is a sum, divided by a normaliser that the caller counts over the global batch. p are softmax probabilities, C is the
number of classes, and p·ln p is 0 where p is 0.

Losses are functions of ln p, which is taken once for all of them: −ln p[label] and −p·ln p need no other softmax, and
ln p is finite where p is too small for its type. Nothing is read back from the device.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist.data.labels import IGNORE_INDEX

SOURCE, TARGET = 0.0, 1.0
"""The discriminator's labels of the two domains."""

LEAST_PROBABILITY = 1e-30
"""In place of 0, whose logarithm is infinite; the published program adds as much."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half precision, which losses do not bear, as float32, and any other type as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def cross_entropy(log_probabilities: Tensor, labels: Tensor, valid_pixels: Tensor) -> Tensor:
    """Sum of −ln p[label] over valid pixels, divided by `valid_pixels`.

    Args:
        log_probabilities: ln p, (batch, classes, height, width).
        labels: train ids (batch, height, width), integer; `IGNORE_INDEX` is not counted.
        valid_pixels: pixels with another label in the global batch, a tensor of no dimension; none at all gives a loss
            of 0.
    """
    # Torch's own sum over pixels is one of atomic additions on a GPU; that of a tensor has an order.
    losses = F.nll_loss(log_probabilities, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return losses.sum() / valid_pixels.clamp(min=1)


def weighted_cross_entropy(log_probabilities: Tensor, labels: Tensor, weights: Tensor, images: int) -> Tensor:
    """Mean of w · −ln p[label] over all pixels of each image, summed, divided by `images`.

    As DACS (arXiv 2007.08702, equation 2) has it: pixels that are ignored or weigh 0 are among those of the mean.

    Args:
        log_probabilities: ln p, (batch, classes, height, width).
        labels: train ids (batch, height, width), integer; `IGNORE_INDEX` has no loss.
        weights: of the pixels, same shape.
        images: images of this domain in the global batch.
    """
    losses = F.nll_loss(log_probabilities, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return (losses * weights).mean((1, 2)).sum() / images


def self_information(log_probabilities: Tensor) -> Tensor:
    """Weighted self-information −p·ln p / ln C of each class (AdvEnt, equation 5), in [0, 1].

    Args:
        log_probabilities: ln p, (batch, classes, …); the result has its shape.
    """
    information: Tensor = _SelfInformation.apply(log_probabilities)
    return information


class _SelfInformation(torch.autograd.Function):
    """−p·ln p / ln C as a function of ln p, whose slope is −p·(1 + ln p) / ln C.

    Of these operations one by one, autograd would keep p as well, a map as large, and go over the maps twice as often.
    """

    @staticmethod
    def forward(ctx: Any, log_probabilities: Tensor) -> Tensor:
        ctx.save_for_backward(log_probabilities)
        return log_probabilities.exp().mul_(log_probabilities).mul_(-1 / math.log(log_probabilities.shape[1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (log_probabilities,) = ctx.saved_tensors
        slope: Tensor = log_probabilities.exp()
        slope.addcmul_(slope, log_probabilities)
        return slope.mul_(gradient).mul_(-1 / math.log(log_probabilities.shape[1]))


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Entropy −Σ p·ln p / ln C over dimension 1 (ESL, equation 3), in [0, 1]: (batch, classes, …) → (batch, …)."""
    return entropy_of_positive(at_least_float32(probabilities).clamp(min=LEAST_PROBABILITY))


def entropy_of_positive(probabilities: Tensor) -> Tensor:
    """Return what `normalised_entropy` does, of probabilities that are all above 0."""
    # torch.special.entr, which takes 0 as well, takes five times as long.
    return probabilities.log().mul_(probabilities).sum(1) / -math.log(probabilities.shape[1])


def entropy_loss(log_probabilities: Tensor, images: int) -> Tensor:
    """Mean normalised entropy of each image (MinEnt; AdvEnt, equation 4), summed, divided by `images`.

    Args:
        log_probabilities: ln p, (batch, classes, height, width).
        images: images of this domain in the global batch.
    """
    return self_information(log_probabilities).sum(1).mean((1, 2)).sum() / images


def domain_loss(domain_logits: Tensor, domain: float, images: int) -> Tensor:
    """Mean binary cross-entropy of each image's discriminator output (AdvEnt, equations 6 and 7), summed, / `images`.

    Args:
        domain_logits: the discriminator's output, (batch, 1, height, width), of any precision.
        domain: the label to hold it against, `SOURCE` or `TARGET`.
        images: images of this domain in the global batch.
    """
    logits = at_least_float32(domain_logits)
    losses = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, domain), reduction="none")
    loss: Tensor = losses.mean((1, 2, 3)).sum() / images
    return loss


def without_gradient(network: nn.Module, input: Tensor) -> Tensor:
    """Apply a network whose parameters get no gradient, while its input does; the network itself is not touched."""
    frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return torch.func.functional_call(network, frozen, (input,))  # type: ignore[no-any-return]
