"""MinEnt: make the network sure of the target by minimising its entropy (AdvEnt, arXiv 1811.12833, section 3.1)."""

from torch import Tensor, nn

from esl_dist.adaptation.losses import entropy_loss
from esl_dist.adaptation.methods.method import Method


def minimise_entropy(target_logits: Tensor, discriminator: nn.Module | None, images: int) -> Tensor:
    """Return the mean normalised entropy of the target's predictions (equation 4)."""
    return entropy_loss(target_logits, images)


MINENT = Method(target_loss=minimise_entropy)
