"""AdvEnt: make the target's entropy look like the source's to a discriminator (arXiv 1811.12833, section 3.2)."""

from torch import Tensor, nn

from esl_dist.adaptation.losses import SOURCE, TARGET, domain_loss, self_information, without_gradient
from esl_dist.adaptation.methods.method import Method


def fool_discriminator(target_logits: Tensor, discriminator: nn.Module | None, images: int) -> Tensor:
    """Hold the discriminator's word on the target's self-information against *source* (equation 7)."""
    assert discriminator is not None
    return domain_loss(without_gradient(discriminator, self_information(target_logits)), SOURCE, images)


def tell_domains_apart(source_logits: Tensor, target_logits: Tensor, discriminator: nn.Module, images: int) -> Tensor:
    """Return half the loss on the source's map against *source*, half that on the target's against *target*."""
    source = domain_loss(discriminator(self_information(source_logits)), SOURCE, images)
    target = domain_loss(discriminator(self_information(target_logits)), TARGET, images)
    return source / 2 + target / 2


ADVENT = Method(target_loss=fool_discriminator, discriminator_loss=tell_domains_apart)
