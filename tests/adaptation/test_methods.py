"""What each method adds to supervised training, and to which parameters it gives gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.losses import entropy_loss
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.methods.advent import fool_discriminator, tell_domains_apart
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.discriminator import build_discriminator
from tests.adaptation import formulas

CLASSES = 4
IMAGES = 3


@pytest.fixture
def discriminator() -> nn.Sequential:
    torch.manual_seed(0)
    return build_discriminator(CLASSES, channels=4).double()


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(IMAGES, CLASSES, 64, 70, generator=generator, dtype=torch.float64)


def said_about(discriminator: nn.Module, scores: Tensor) -> np.ndarray:
    """Return the discriminator's output on the self-information of the scores, written out with NumPy."""
    information = -formulas.plogp(formulas.softmax(scores.detach().numpy()), CLASSES)
    with torch.no_grad():
        return discriminator(torch.from_numpy(information)).numpy()


def test_source_only_and_minent_add_no_network() -> None:
    network = DeepLab("tiny", CLASSES, True, False)
    for name in ("source_only", "minent"):
        assert list(build_networks(METHODS[name], network, CLASSES, settings.Method())) == ["segmentation"]
    assert [name for name, method in METHODS.items() if method.needs_target] == ["minent", "advent"]


def test_minent_minimises_the_entropy_of_the_target() -> None:
    expected = formulas.entropy(formulas.softmax(logits(1).numpy())).mean()
    np.testing.assert_allclose(entropy_loss(logits(1), IMAGES), expected, rtol=1e-9)


def test_advent_holds_the_target_against_the_label_of_the_source(discriminator: nn.Sequential) -> None:
    expected = formulas.binary_cross_entropy(said_about(discriminator, logits(1)), 0.0)
    np.testing.assert_allclose(fool_discriminator(logits(1), discriminator, IMAGES).detach(), expected, rtol=1e-9)


def test_the_discriminator_learns_half_from_each_domain(discriminator: nn.Sequential) -> None:
    source = formulas.binary_cross_entropy(said_about(discriminator, logits(1)), 0.0)
    target = formulas.binary_cross_entropy(said_about(discriminator, logits(2)), 1.0)
    actual = tell_domains_apart(logits(1), logits(2), discriminator, IMAGES)
    np.testing.assert_allclose(actual.detach(), source / 2 + target / 2, rtol=1e-9)
    actual.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_fooling_the_discriminator_does_not_teach_it(discriminator: nn.Sequential) -> None:
    target = logits(1).requires_grad_()
    fool_discriminator(target, discriminator, IMAGES).backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert target.grad.abs().sum() > 0


def test_following_the_gradient_fools_the_discriminator(discriminator: nn.Sequential) -> None:
    target = logits(1).requires_grad_()
    before = fool_discriminator(target, discriminator, IMAGES)
    before.backward()
    moved = target.detach() - 10 * target.grad / target.grad.abs().max()
    assert fool_discriminator(moved, discriminator, IMAGES) < before
    assert said_about(discriminator, moved).mean() < said_about(discriminator, target).mean(), "closer to source, 0"


def test_shares_of_single_images_add_up(discriminator: nn.Sequential) -> None:
    parts = [(logits(1)[i : i + 1], logits(2)[i : i + 1]) for i in range(IMAGES)]
    shares = sum(entropy_loss(target, IMAGES) for _, target in parts)
    torch.testing.assert_close(shares, entropy_loss(logits(2), IMAGES))
    shares = sum(fool_discriminator(target, discriminator, IMAGES) for _, target in parts)
    torch.testing.assert_close(shares, fool_discriminator(logits(2), discriminator, IMAGES))
    shares = sum(tell_domains_apart(*part, discriminator, IMAGES) for part in parts)
    torch.testing.assert_close(shares, tell_domains_apart(logits(1), logits(2), discriminator, IMAGES))
