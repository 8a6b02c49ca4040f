"""Optimisers, schedule, and an update that happens on all networks or on none."""

import math
import re

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.optimisers import polynomial_rate, set_rates
from esl_dist.models.deeplab import DeepLab
from esl_dist.training.optimisation import PlainUpdating, schedule_note

OPTIONS = settings.Optimizer(learning_rate=0.1, schedule_steps=100)


def networks(method: str = "advent") -> nn.ModuleDict:
    torch.manual_seed(0)
    network = DeepLab("tiny", 3, True, False)
    return build_networks(METHODS[method], network, 3, settings.Method(discriminator_channels=2))


def plain(built: nn.ModuleDict, scaler: GradScaler | None = None) -> PlainUpdating:
    """Return the updating of networks whose rates are those of the first step."""
    optimizers = METHODS["advent" if "discriminators" in built else "minent"].optimizers(built, OPTIONS)
    set_rates(optimizers, 0, OPTIONS)
    return PlainUpdating(built, optimizers, scaler)


def test_the_rate_falls_from_the_base_to_zero_by_the_published_formula() -> None:
    assert polynomial_rate(2.5e-4, 0, settings.Optimizer()) == 2.5e-4
    assert polynomial_rate(2.5e-4, 125_000, settings.Optimizer()) == pytest.approx(2.5e-4 * 0.5**0.9, rel=1e-12)
    assert polynomial_rate(2.5e-4, 250_000, settings.Optimizer()) == 0


def test_a_rate_that_barely_falls_is_noted_and_the_published_one_is_not() -> None:
    assert schedule_note(settings.Optimizer(), settings.Train(source=settings.Shards("s")).steps) == ""
    assert schedule_note(settings.Optimizer(), 250_000) == ""
    note = schedule_note(settings.Optimizer(), 20_000)
    assert "falls by 7 % only, for optimizer.schedule_steps=250000 is 12.5 times steps=20000" in note
    assert "is 62500 times steps=4;" in schedule_note(settings.Optimizer(), 4)
    advised = re.findall("optimizer.schedule_steps=([0-9]+) for", note)
    assert advised == ["41667"], "as 250 000 are to 120 000"
    assert schedule_note(settings.Optimizer(schedule_steps=int(advised[0])), 20_000) == ""
    assert schedule_note(settings.Optimizer(schedule_power=0), 20_000) == ""


def test_every_trainable_parameter_is_stepped_once_with_its_factor() -> None:
    built = networks()
    options = settings.Optimizer(
        learning_rate=0.1, multipliers=settings.RateMultipliers(stem=2.0, blocks=3.0, shortcuts=4.0, heads=10.0)
    )
    optimizers = METHODS["advent"].optimizers(built, options)
    rates = set_rates(optimizers, 0, options)
    expected = {"stem": 0.2, "blocks": 0.3, "shortcuts": 0.4, "heads": 1.0, "discriminators": 1e-4}
    assert rates.groups == pytest.approx(expected)
    assert rates.base == 0.1
    stepped = [id(p) for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    trainable = [id(p) for p in built.parameters() if p.requires_grad]
    assert sorted(stepped) == sorted(trainable)


def test_an_update_is_that_of_sgd_with_momentum_and_decay() -> None:
    built = networks("minent")
    updating = plain(built)
    weight = built["segmentation"].conv1.weight
    before = weight.detach().clone()
    momentum = torch.zeros_like(before)
    expected = before.clone()
    for _ in range(2):
        gradient = torch.ones_like(before)
        weight.grad = gradient.clone()
        assert updating.update("a step")
        momentum = 0.9 * momentum + gradient + 5e-4 * expected
        expected = expected - 0.1 * momentum
    torch.testing.assert_close(weight.detach(), expected)
    assert weight.grad is None, "gradients are forgotten"


def test_an_update_of_the_discriminators_is_that_of_adam_with_the_published_betas() -> None:
    built = networks().double()
    updating = plain(built)
    weight = built["discriminators"]["main"][0].weight
    expected = weight.detach().clone()
    mean = square = 0.0
    for step, gradient in enumerate((1.0, -3.0), start=1):
        weight.grad = torch.full_like(weight, gradient)
        assert updating.update("a step")
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        expected -= 1e-4 * mean / (1 - 0.9**step) / (math.sqrt(square / (1 - 0.99**step)) + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("broken", ["segmentation", "discriminator"])
def test_one_infinite_gradient_makes_every_optimiser_skip_and_lowers_the_scale(broken: str) -> None:
    built = networks()
    scaler = GradScaler("cpu", init_scale=8.0)
    updating = plain(built, scaler=scaler)
    updating.begin_step()
    scaler.scale(torch.zeros(1))
    parameters = {
        "segmentation": built["segmentation"].conv1.weight,
        "discriminator": built["discriminators"]["main"][0].weight,
    }
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.full_like(parameter, float("inf") if name == broken else 8.0)
    assert not updating.update("a step")
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
    assert scaler.get_scale() == 4.0

    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 4.0)
    assert updating.update("a step")
    assert all(not torch.equal(parameter, before[name]) for name, parameter in parameters.items())


def test_the_scale_is_taken_out_of_the_gradients() -> None:
    unscaled, scaled = networks("minent"), networks("minent")
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(1))
    for built, factor, used in ((unscaled, 1.0, None), (scaled, 1024.0, scaler)):
        updating = plain(built, scaler=used)
        updating.begin_step()
        weight = built["segmentation"].conv1.weight
        weight.grad = torch.full_like(weight, 0.5 * factor)
        assert updating.update("a step")
    torch.testing.assert_close(unscaled["segmentation"].conv1.weight, scaled["segmentation"].conv1.weight)
