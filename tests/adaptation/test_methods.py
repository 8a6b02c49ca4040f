"""What each method adds to supervised training, and to which parameters it gives gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esl_dist.adaptation.methods import METHODS
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


def test_source_only_adds_nothing() -> None:
    assert METHODS["source_only"].target_loss is None
    assert METHODS["source_only"].discriminator_loss is None


def test_minent_minimises_the_entropy_of_the_target_without_a_discriminator() -> None:
    method = METHODS["minent"]
    assert method.discriminator_loss is None
    assert method.target_loss is not None
    expected = formulas.entropy(formulas.softmax(logits(1).numpy())).mean()
    np.testing.assert_allclose(method.target_loss(logits(1), None, IMAGES), expected, rtol=1e-9)


def test_advent_holds_the_target_against_the_label_of_the_source(discriminator: nn.Sequential) -> None:
    loss = METHODS["advent"].target_loss
    assert loss is not None
    expected = formulas.binary_cross_entropy(said_about(discriminator, logits(1)), 0.0)
    np.testing.assert_allclose(loss(logits(1), discriminator, IMAGES).detach(), expected, rtol=1e-9)


def test_the_discriminator_learns_half_from_each_domain(discriminator: nn.Sequential) -> None:
    loss = METHODS["advent"].discriminator_loss
    assert loss is not None
    source = formulas.binary_cross_entropy(said_about(discriminator, logits(1)), 0.0)
    target = formulas.binary_cross_entropy(said_about(discriminator, logits(2)), 1.0)
    actual = loss(logits(1), logits(2), discriminator, IMAGES)
    np.testing.assert_allclose(actual.detach(), source / 2 + target / 2, rtol=1e-9)
    actual.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_fooling_the_discriminator_does_not_teach_it(discriminator: nn.Sequential) -> None:
    loss = METHODS["advent"].target_loss
    assert loss is not None
    target = logits(1).requires_grad_()
    loss(target, discriminator, IMAGES).backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert target.grad.abs().sum() > 0


def test_following_the_gradient_fools_the_discriminator(discriminator: nn.Sequential) -> None:
    loss = METHODS["advent"].target_loss
    assert loss is not None
    target = logits(1).requires_grad_()
    before = loss(target, discriminator, IMAGES)
    before.backward()
    moved = target.detach() - 10 * target.grad / target.grad.abs().max()
    assert loss(moved, discriminator, IMAGES) < before
    assert said_about(discriminator, moved).mean() < said_about(discriminator, target).mean(), "closer to source, 0"


@pytest.mark.parametrize("name", ["minent", "advent"])
def test_shares_of_single_images_add_up(name: str, discriminator: nn.Sequential) -> None:
    method = METHODS[name]
    parts = [(logits(1)[i : i + 1], logits(2)[i : i + 1]) for i in range(IMAGES)]
    assert method.target_loss is not None
    shares = sum(method.target_loss(target, discriminator, IMAGES) for _, target in parts)
    torch.testing.assert_close(shares, method.target_loss(logits(2), discriminator, IMAGES))
    if method.discriminator_loss is not None:
        shares = sum(method.discriminator_loss(*part, discriminator, IMAGES) for part in parts)
        torch.testing.assert_close(shares, method.discriminator_loss(logits(1), logits(2), discriminator, IMAGES))
