"""Losses are the papers' formulas, and the shares of the parts of a batch add up to the loss of the whole."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from esl_dist.adaptation.losses import (
    SOURCE,
    TARGET,
    cross_entropy,
    domain_loss,
    entropy_loss,
    normalised_entropy,
    self_information,
    without_gradient,
)
from esl_dist.models.discriminator import build_discriminator
from tests.adaptation import formulas

CLASSES = 5
IMAGES = 6
SIZE = (7, 9)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def random_logits(seed: int = 0, images: int = IMAGES, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(images, CLASSES, *SIZE, generator=generator, dtype=torch.float64)


def random_log_probabilities(seed: int = 0) -> Tensor:
    return F.log_softmax(random_logits(seed), dim=1)


def random_labels(seed: int = 0) -> Tensor:
    """Return labels of six images: all pixels are valid in the first, fewer in each that follows, none in the last."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, (IMAGES, *SIZE), dtype=np.uint8)
    for number, kept in enumerate((1.0, 0.7, 0.4, 0.1, 0.02, 0.0)):
        labels[number][random.random(SIZE) >= kept] = 255
    labels[4, 0, 0] = 2
    return torch.from_numpy(labels)


splits = st.lists(st.integers(0, 3), min_size=IMAGES, max_size=IMAGES)
"""Which of four parts each image is in; a part may be empty."""


def test_cross_entropy_is_the_mean_over_valid_pixels() -> None:
    logits, labels = random_logits(), random_labels()
    loss = cross_entropy(F.log_softmax(logits, dim=1), labels, (labels != 255).sum())
    np.testing.assert_allclose(loss, formulas.cross_entropy(logits.numpy(), labels.numpy()), rtol=1e-12)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_labels_may_be_any_integers(kind: torch.dtype) -> None:
    predicted, labels = random_log_probabilities(), random_labels()
    assert cross_entropy(predicted, labels.to(kind), torch.tensor(9)) == cross_entropy(
        predicted, labels, torch.tensor(9)
    )


def test_without_a_valid_pixel_cross_entropy_and_its_gradient_are_zero() -> None:
    logits = random_logits().requires_grad_()
    labels = torch.full((IMAGES, *SIZE), 255, dtype=torch.uint8)
    loss = cross_entropy(F.log_softmax(logits, dim=1), labels, torch.tensor(0))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_part_without_a_valid_pixel_has_a_share_of_zero() -> None:
    assert cross_entropy(random_log_probabilities()[-1:], random_labels()[-1:], torch.tensor(100)) == 0


def test_self_information_is_the_papers() -> None:
    logits = random_logits()
    expected = -formulas.plogp(formulas.softmax(logits.numpy()), 2) / np.log2(CLASSES)
    np.testing.assert_allclose(self_information(F.log_softmax(logits, dim=1)), expected, rtol=1e-12, atol=1e-15)


def test_normalised_entropy_is_the_papers() -> None:
    probabilities = formulas.softmax(random_logits().numpy())
    actual = normalised_entropy(torch.from_numpy(probabilities))
    np.testing.assert_allclose(actual, formulas.entropy(probabilities), rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 7, 19])
def test_entropy_is_0_for_certainty_and_1_for_none(classes: int) -> None:
    certain = torch.eye(classes, dtype=torch.float64)[:, :, None]
    uniform = torch.full((1, classes, 1), 1 / classes, dtype=torch.float64)
    assert float(normalised_entropy(certain).abs().max()) < 1e-25
    torch.testing.assert_close(normalised_entropy(uniform), torch.ones(1, 1, dtype=torch.float64))
    assert abs(float(entropy_loss(uniform[..., None].log(), 1)) - 1) < 1e-6


def test_entropy_loss_is_the_mean_entropy_of_the_pixels() -> None:
    logits = random_logits()
    expected = formulas.entropy(formulas.softmax(logits.numpy())).mean()
    np.testing.assert_allclose(entropy_loss(F.log_softmax(logits, dim=1), IMAGES), expected, rtol=1e-12)


@pytest.mark.parametrize("domain", [SOURCE, TARGET])
def test_domain_loss_is_binary_cross_entropy(domain: float) -> None:
    logits = random_logits()[:, :1]
    np.testing.assert_allclose(
        domain_loss(logits, domain, IMAGES), formulas.binary_cross_entropy(logits.numpy(), domain), rtol=1e-12
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_loss_of_an_output_in_half_precision_is_in_float32(kind: torch.dtype) -> None:
    said = random_logits()[:, :1].to(kind)
    loss = domain_loss(said, TARGET, IMAGES)
    assert loss.dtype == torch.float32
    assert loss == domain_loss(said.float(), TARGET, IMAGES)


def test_source_is_0_and_target_is_1() -> None:
    says_source = torch.full((1, 1, 2, 2), -20.0)
    assert domain_loss(says_source, SOURCE, 1) < 1e-6
    assert domain_loss(says_source, TARGET, 1) > 19


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [self_information, lambda predicted: entropy_loss(predicted, 1)])
def test_certain_predictions_have_no_entropy_and_a_finite_gradient(
    function: Callable[[Tensor], Tensor], kind: torch.dtype
) -> None:
    logits = torch.full((1, CLASSES, 2, 3), -1000.0, dtype=kind)
    logits[:, 1] = 1000.0
    logits.requires_grad_()
    values = function(F.log_softmax(logits, dim=1))
    values.sum().backward()
    assert torch.equal(values, torch.zeros_like(values))
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_gradient_of_self_information_is_that_of_its_formula() -> None:
    predicted = random_log_probabilities()[:1, :, :2, :3].requires_grad_()
    assert torch.autograd.gradcheck(self_information, predicted)


def test_self_information_keeps_nothing_but_the_log_probabilities_for_its_gradient() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    predicted = random_log_probabilities().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        self_information(predicted)
    assert kept == [predicted.data_ptr()]


@given(st.lists(st.sampled_from([-1000.0, -90.0, -1.0, 0.0, 2.0, 87.0, 1000.0]), min_size=CLASSES, max_size=CLASSES))
@settings(deadline=None)
def test_no_logits_give_a_value_out_of_range_or_a_gradient_that_is_none(scores: list[float]) -> None:
    logits = torch.tensor(scores)[None, :, None, None].requires_grad_()
    information = self_information(F.log_softmax(logits, dim=1))
    entropy_loss(F.log_softmax(logits, dim=1), 1).backward()
    assert information.min() >= 0
    assert information.sum() <= 1 + 1e-6
    assert logits.grad.isfinite().all()


@given(parts=splits, seed=st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_shares_of_any_split_add_up_to_the_whole(parts: list[int], seed: int) -> None:
    logits, labels = random_logits(seed), random_labels(seed)
    valid_pixels = (labels != 255).sum()
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cross entropy": lambda own, known: cross_entropy(F.log_softmax(own, dim=1), known, valid_pixels),
        "entropy": lambda own, known: entropy_loss(F.log_softmax(own, dim=1), IMAGES),
        "source": lambda own, known: domain_loss(own[:, :1], SOURCE, IMAGES),
        "target": lambda own, known: domain_loss(own[:, :1], TARGET, IMAGES),
    }
    for loss in losses.values():
        whole_logits, split_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        whole = loss(whole_logits, labels)
        whole.backward()
        total = torch.zeros((), dtype=torch.float64)
        for part in set(parts):
            own = torch.tensor([member == part for member in parts])
            share = loss(split_logits[own], labels[own])
            share.backward()
            total += share.detach()
        torch.testing.assert_close(total, whole.detach(), **CLOSE)
        torch.testing.assert_close(split_logits.grad, whole_logits.grad, **CLOSE)


def test_without_gradient_passes_it_through_but_leaves_none_behind() -> None:
    torch.manual_seed(0)
    network = build_discriminator(CLASSES, channels=2).double()
    frozen_input = torch.randn(1, CLASSES, 40, 40, dtype=torch.float64, requires_grad=True)
    output = without_gradient(network, frozen_input)
    output.sum().backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    plain_input = frozen_input.detach().clone().requires_grad_()
    expected = network(plain_input)
    expected.sum().backward()
    assert torch.equal(output, expected)
    assert torch.equal(frozen_input.grad, plain_input.grad)
    assert frozen_input.grad.abs().sum() > 0
