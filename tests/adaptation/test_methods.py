"""What each method adds to supervised training, and to which parameters it gives gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist import config as settings
from esl_dist.adaptation.losses import entropy_loss, self_information
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.methods.advent import fool_discriminator, tell_domains_apart
from esl_dist.adaptation.passes import Normaliser, Step
from esl_dist.config import Domain
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.discriminator import build_discriminator
from esl_dist.training.unread import OF_METHODS
from tests.adaptation import formulas, steps

CLASSES = 4
IMAGES = 3


@pytest.fixture
def discriminator() -> nn.Sequential:
    torch.manual_seed(0)
    return build_discriminator(CLASSES, channels=4).double()


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(IMAGES, CLASSES, 64, 70, generator=generator, dtype=torch.float64)


def information(seed: int) -> Tensor:
    return self_information(F.log_softmax(logits(seed), dim=1))


def said_about(discriminator: nn.Module, scores: Tensor) -> np.ndarray:
    """Return the discriminator's output on the self-information of the scores, written out with NumPy."""
    information = -formulas.plogp(formulas.softmax(scores.detach().numpy()), scores.shape[1])
    with torch.no_grad():
        return discriminator(torch.from_numpy(information)).numpy()


def test_source_only_and_minent_add_no_network() -> None:
    network = DeepLab("tiny", CLASSES, True, False)
    for name in ("source_only", "minent"):
        assert list(build_networks(METHODS[name], network, CLASSES, settings.Method())) == ["segmentation"]
    assert not METHODS["source_only"].needs_target


@pytest.mark.parametrize("name", METHODS)
def test_the_catalogue_says_of_a_method_what_its_class_says(name: str) -> None:
    assert METHODS.needs_target(name) is METHODS[name].needs_target


class Noted:
    """Settings that note which of them are read."""

    def __init__(self, options: settings.Method | settings.Optimizer) -> None:
        self.options = options
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.options, name)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        *((name, "self_training") for name in ("source_only", "minent", "advent", "self_training")),
        *(("masked_consistency", host) for host in ("self_training", "advent", "minent")),
    ],
)
def test_a_method_reads_the_settings_that_it_says_and_no_others(name: str, host: str) -> None:
    options: Any = Noted(settings.Method(name=name, host=host))
    rates: Any = Noted(settings.Optimizer())
    method, target = METHODS[name], steps.domain_batch(2, labels=False) if METHODS[name].needs_target else None
    step = steps.make_step(name, target, options.options)
    method.networks(step.networks["segmentation"], steps.CLASSES, options)
    method.optimizers(step.networks, rates)
    method.passes(replace(step, options=options))
    method.after_update(step.networks, 1, step.counts, options)
    read = {f"method.{key}" for key in options.read} | {f"optimizer.{key}" for key in rates.read}
    assert {key for key in read if key.startswith(OF_METHODS)} == method.reads(options.options)


WEIGHTS = {"cross_entropy": {"main": 2.0, "auxiliary": 3.0}, "target": {"main": 5.0, "auxiliary": 7.0}}
SHARE = 0.5
"""Of the global batch's images, on this rank."""

Scores = dict[str, dict[str, np.ndarray]]
"""Domain → level → logits at label size."""

Weighted = dict[str, tuple[float, float]]
"""Name of a loss → its value and its weight."""


def cross_entropy(step: Step, scores: Scores, domain: Domain) -> Weighted:
    """Return the mean over this rank's labelled pixels, times its share of those of the global batch, at each level."""
    labels = step.samples(domain)["labels"].numpy()
    share = (labels != 255).sum() / int(step.normaliser.valid_pixels[("source", "target").index(domain)])
    return {
        f"{domain}_cross_entropy/{level}": (share * formulas.cross_entropy(logits, labels), weight)
        for (level, logits), weight in zip(scores[domain].items(), WEIGHTS["cross_entropy"].values(), strict=True)
    }


def minent(scores: Scores) -> Weighted:
    return {
        f"target_minent/{level}": (SHARE * formulas.entropy(formulas.softmax(scores["target"][level])).mean(), weight)
        for level, weight in WEIGHTS["target"].items()
    }


def advent(scores: Scores, discriminators: nn.Module) -> tuple[Weighted, Weighted]:
    """Return the loss on the target, and the discriminators'."""
    on_target, on_both = {}, {}
    for level, weight in WEIGHTS["target"].items():
        source, target = (
            said_about(discriminators[level], torch.from_numpy(scores[domain][level]))
            for domain in ("source", "target")
        )
        on_target[f"target_advent/{level}"] = SHARE * formulas.binary_cross_entropy(target, 0.0), weight
        apart = formulas.binary_cross_entropy(source, 0.0) / 2 + formulas.binary_cross_entropy(target, 1.0) / 2
        on_both[f"discriminator/{level}"] = SHARE * apart, 1.0
    return on_target, on_both


@pytest.mark.parametrize("pseudo_labels", [False, True])
@pytest.mark.parametrize("name", ["source_only", "minent", "advent"])
def test_a_step_minimises_the_papers_losses_of_its_own_logits_with_the_weights_of_their_levels(
    name: str, pseudo_labels: bool
) -> None:
    options = settings.Method(name, **{loss: settings.LevelWeights(**levels) for loss, levels in WEIGHTS.items()})
    target = steps.domain_batch(2, pseudo_labels) if METHODS[name].needs_target or pseudo_labels else None
    step = steps.make_step(name, target, options)
    # Other ranks have as many images, and labelled pixels of the two domains in other numbers.
    of_all_ranks = Normaliser(step.normaliser.valid_pixels * torch.tensor([2, 4]), round(steps.IMAGES / SHARE))
    step = replace(step, normaliser=of_all_ranks)

    passes, logits = steps.noted_passes(name, step)

    scores = {
        domain: {level: formulas.bilinear(one.numpy(), *steps.SIZE) for level, one in levels.items()}
        for domain, levels in logits.items()
    }
    on_target = cross_entropy(step, scores, "target") if pseudo_labels else {}
    on_both: Weighted = {}
    if name == "minent":
        on_target |= minent(scores)
    if name == "advent":
        fooling, on_both = advent(scores, step.networks["discriminators"])
        on_target |= fooling
    expected = [("segmentation", cross_entropy(step, scores, "source"))]
    expected += [
        (network, losses) for network, losses in (("segmentation", on_target), ("discriminators", on_both)) if losses
    ]

    close = {"rel": 1e-9, "abs": 0}
    values = {key: loss for _, losses in expected for key, (loss, _) in losses.items()}
    assert {key: float(loss) for key, loss in step.losses.items()} == pytest.approx(values, **close)
    totals = [sum(loss * weight for loss, weight in losses.values()) for _, losses in expected]
    assert [one.loss for one in passes] == pytest.approx(totals, **close)
    networks = [network for network, _ in expected]
    assert [one.network for one in passes] == networks
    assert [one.reached for one in passes] == [[network] for network in networks]


def test_minent_minimises_the_entropy_of_the_target() -> None:
    expected = formulas.entropy(formulas.softmax(logits(1).numpy())).mean()
    np.testing.assert_allclose(entropy_loss(F.log_softmax(logits(1), dim=1), IMAGES), expected, rtol=1e-9)


def test_advent_holds_the_target_against_the_label_of_the_source(discriminator: nn.Sequential) -> None:
    expected = formulas.binary_cross_entropy(said_about(discriminator, logits(1)), 0.0)
    np.testing.assert_allclose(fool_discriminator(information(1), discriminator, IMAGES).detach(), expected, rtol=1e-9)


def test_the_discriminator_learns_half_from_each_domain(discriminator: nn.Sequential) -> None:
    source = formulas.binary_cross_entropy(said_about(discriminator, logits(1)), 0.0)
    target = formulas.binary_cross_entropy(said_about(discriminator, logits(2)), 1.0)
    actual = tell_domains_apart(information(1), information(2), discriminator, IMAGES)
    np.testing.assert_allclose(actual.detach(), source / 2 + target / 2, rtol=1e-9)
    actual.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_fooling_the_discriminator_does_not_teach_it(discriminator: nn.Sequential) -> None:
    target = information(1).requires_grad_()
    fool_discriminator(target, discriminator, IMAGES).backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert target.grad.abs().sum() > 0


def test_following_the_gradient_fools_the_discriminator(discriminator: nn.Sequential) -> None:
    def fooled(scores: Tensor) -> Tensor:
        return fool_discriminator(self_information(F.log_softmax(scores, dim=1)), discriminator, IMAGES)

    target = logits(1).requires_grad_()
    before = fooled(target)
    before.backward()
    moved = target.detach() - 10 * target.grad / target.grad.abs().max()
    assert fooled(moved) < before
    assert said_about(discriminator, moved).mean() < said_about(discriminator, target).mean(), "closer to source, 0"


def test_shares_of_single_images_add_up(discriminator: nn.Sequential) -> None:
    predicted, source, target = F.log_softmax(logits(2), dim=1), information(1), information(2)
    whole = (
        entropy_loss(predicted, IMAGES),
        fool_discriminator(target, discriminator, IMAGES),
        tell_domains_apart(source, target, discriminator, IMAGES),
    )
    shares = [
        (
            entropy_loss(predicted[i : i + 1], IMAGES),
            fool_discriminator(target[i : i + 1], discriminator, IMAGES),
            tell_domains_apart(source[i : i + 1], target[i : i + 1], discriminator, IMAGES),
        )
        for i in range(IMAGES)
    ]
    torch.testing.assert_close(tuple(sum(share) for share in zip(*shares, strict=True)), whole)
