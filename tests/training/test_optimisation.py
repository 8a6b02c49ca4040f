"""Optimisers, schedule, and an update that happens on all networks or on none."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.optimisers import (
    SGD,
    Adam,
    AdamW,
    fuse,
    load_plain_state,
    plain_state,
    polynomial_rate,
    set_rates,
)
from esl_dist.models.deeplab import DeepLab
from esl_dist.reporting.curves import Curves
from esl_dist.training.log import TrainingLog
from esl_dist.training.optimisation import Updating, in_order_of_completion, schedule_note

OPTIONS = settings.Optimizer(learning_rate=0.1, schedule_steps=100)


def networks(method: str = "advent") -> nn.ModuleDict:
    torch.manual_seed(0)
    network = DeepLab("tiny", 3, True, False)
    return build_networks(METHODS[method], network, 3, settings.Method(discriminator_channels=2))


def plain(built: nn.ModuleDict, scaler: GradScaler | None = None) -> Updating:
    """Return the updating of networks whose rates are those of the first step."""
    optimizers = METHODS["advent" if "discriminators" in built else "minent"].optimizers(built, OPTIONS)
    set_rates(optimizers, 0, OPTIONS)
    return Updating(built, optimizers, scaler)


def add(updating: Updating, parameter: nn.Parameter, gradient: Tensor | float) -> None:
    """Make a backward pass that adds `gradient` to that of a parameter."""
    updating.backward((parameter * gradient).sum(), "any")


def test_the_rate_falls_from_the_base_to_zero_by_the_published_formula() -> None:
    assert polynomial_rate(2.5e-4, 0, settings.Optimizer()) == 2.5e-4
    assert polynomial_rate(2.5e-4, 125_000, settings.Optimizer()) == pytest.approx(2.5e-4 * 0.5**0.9, rel=1e-12)
    assert polynomial_rate(2.5e-4, 250_000, settings.Optimizer()) == 0


def test_the_rate_warms_up_in_equal_parts_and_is_then_the_published_one() -> None:
    built = networks()
    optimizers = METHODS["advent"].optimizers(built, OPTIONS)
    warmed = replace(OPTIONS, warm_up_steps=4)
    for step, share in enumerate([0.25, 0.5, 0.75, 1, 1, 1]):
        plain = set_rates(optimizers, step, OPTIONS)
        rates = set_rates(optimizers, step, warmed)
        assert rates.base == pytest.approx(share * plain.base, rel=1e-12)
        assert rates.groups == pytest.approx({name: share * rate for name, rate in plain.groups.items()}, rel=1e-12)
        stepped = {group["name"]: group["lr"] for one in optimizers.values() for group in one.param_groups}
        assert stepped == rates.groups


def test_a_rate_is_that_of_its_step_whichever_step_came_before() -> None:
    optimizers = METHODS["advent"].optimizers(networks(), OPTIONS)
    warmed = replace(OPTIONS, warm_up_steps=4)
    in_turn = [set_rates(optimizers, step, warmed) for step in range(8)]
    assert [set_rates(optimizers, step, warmed) for step in reversed(range(8))] == in_turn[::-1]


def test_a_training_that_ends_within_its_warm_up_is_noted() -> None:
    options = settings.Optimizer(schedule_steps=100, warm_up_steps=50)
    assert "only rises, for optimizer.warm_up_steps=50 is more than steps=49" in schedule_note(options, 49)
    assert schedule_note(options, 50) == schedule_note(replace(options, warm_up_steps=0), 50)


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
        add(updating, weight, gradient)
        assert updating.update("a step")
        momentum = 0.9 * momentum + gradient + 5e-4 * expected
        expected = expected - 0.1 * momentum
    torch.testing.assert_close(weight.detach(), expected)
    assert not any(one.grad.any() for one in built.parameters() if one.grad is not None), "gradients are forgotten"


def test_an_update_of_the_discriminators_is_that_of_adam_with_the_published_betas() -> None:
    built = networks().double()
    updating = plain(built)
    weight = built["discriminators"]["main"][0].weight
    expected = weight.detach().clone()
    mean = square = 0.0
    for step, gradient in enumerate((1.0, -3.0), start=1):
        add(updating, weight, gradient)
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
    parameters = {
        "segmentation": built["segmentation"].conv1.weight,
        "discriminator": built["discriminators"]["main"][0].weight,
    }
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        add(updating, parameter, float("inf") if name == broken else 1.0)
    assert not updating.update("a step")
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
    assert scaler.get_scale() == 4.0

    for parameter in parameters.values():
        add(updating, parameter, 1.0)
    assert updating.update("a step")
    assert all(not torch.equal(parameter, before[name]) for name, parameter in parameters.items())


def test_an_overflow_that_only_running_statistics_show_is_one_too() -> None:
    """A teacher has no gradients."""
    built, scaler = networks(), GradScaler("cpu", init_scale=8.0)
    built["teacher"] = networks()["segmentation"]
    statistics, weight = built["teacher"].bn1.running_mean, built["segmentation"].conv1.weight
    before, weight_before = statistics.clone(), weight.detach().clone()
    updating = plain(built, scaler=scaler)
    updating.begin_step()
    statistics[0] = float("inf")
    for parameter in (weight, built["discriminators"]["main"][0].weight):
        add(updating, parameter, 1.0)
    assert not updating.update("a step")
    assert scaler.get_scale() == 4.0
    assert torch.equal(statistics, before)
    assert torch.equal(weight, weight_before)


def test_the_scale_is_taken_out_of_the_gradients_and_their_norms() -> None:
    unscaled, scaled = networks("minent"), networks("minent")
    for built, scaler in ((unscaled, None), (scaled, GradScaler("cpu", init_scale=1024.0))):
        updating = plain(built, scaler=scaler)
        updating.begin_step(measures=True)
        add(updating, built["segmentation"].conv1.weight, 0.5)
        assert updating.update("a step")
        [norm] = updating.norms().values()
        assert float(norm) == pytest.approx(0.5 * built["segmentation"].conv1.weight.numel() ** 0.5)
    torch.testing.assert_close(unscaled["segmentation"].conv1.weight, scaled["segmentation"].conv1.weight)


def test_each_network_has_the_norm_of_its_own_gradients_and_an_overflow_has_none() -> None:
    built = networks()
    updating = plain(built, scaler=GradScaler("cpu", init_scale=8.0))
    first, second = built["segmentation"].conv1.weight, built["discriminators"]["main"][0].weight
    for values, measures in (((2.0, 3.0), True), ((5.0, 5.0), False), ((float("inf"), 1.0), True)):
        updating.begin_step(measures)
        for weight, value in zip((first, second), values, strict=True):
            add(updating, weight, value)
        assert updating.update("a step") == (values[0] < 10)
        of_first, of_second = values if measures else (2.0, 3.0)
        norms = {name: float(norm) for name, norm in updating.norms().items()}
        expected = {
            "segmentation": of_first * first.numel() ** 0.5,
            "discriminators": of_second * second.numel() ** 0.5,
        }
        assert norms == pytest.approx(expected), "as last measured"


def test_a_parameter_that_no_pass_reaches_is_passed_over() -> None:
    """Weight decay and momentum would change it, though the steps have nothing to say of it."""
    built = networks("minent")
    updating = plain(built)
    one = built.get_parameter("segmentation.layer1.0.conv1.weight")
    before = {name: weight.detach().clone() for name, weight in built.named_parameters()}
    for _ in range(2):
        add(updating, one, 1.0)
        assert updating.update("a step")
    changed = [name for name, weight in built.named_parameters() if not torch.equal(weight, before[name])]
    assert changed == ["segmentation.layer1.0.conv1.weight"]


def test_gradients_lie_in_the_order_in_which_a_backward_pass_completes_them() -> None:
    built = networks()
    ordered = [
        in_order_of_completion(built, name, optimizer)
        for name, optimizer in METHODS["advent"].optimizers(built, OPTIONS).items()
    ]
    completed: list[Tensor] = []
    for one in built["segmentation"].parameters():
        if one.requires_grad:
            one.register_post_accumulate_grad_hook(completed.append)
    logits = built["segmentation"](torch.randn(2, 3, 32, 64), "source")
    torch.stack([scores.sum() for scores in logits.values()]).sum().backward()
    place = {id(one): number for number, one in enumerate(ordered[0])}
    order = [place[id(one)] for one in completed]
    assert sorted(order) == list(range(len(place)))
    # Four convolutions with a bias in each of two heads: autograd goes through branches in an order of its own.
    heads = 4 * 2 * 2
    assert order[heads:] == list(range(heads, len(order)))


def test_an_optimiser_of_parameters_in_no_network_is_refused() -> None:
    built = networks("minent")
    optimizers = {"segmentation": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)}
    with pytest.raises(ValueError, match="the optimiser of 'segmentation' trains a parameter that is in no network"):
        Updating(built, optimizers, None)


def stepped(built: nn.ModuleDict, updating: Updating, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for one in built.parameters():
        if one.requires_grad:
            add(updating, one, torch.randn(one.shape, generator=random, dtype=one.dtype))
    assert updating.update("a step")


def test_fused_optimisers_come_to_the_weights_and_states_of_plain_ones() -> None:
    fused, plainly = networks().double(), networks().double()
    updating = plain(fused)
    optimizers = METHODS["advent"].optimizers(plainly, OPTIONS)
    set_rates(optimizers, 0, OPTIONS)
    for seed in range(3):
        stepped(fused, updating, seed)
        random = torch.Generator().manual_seed(seed)
        for one in plainly.parameters():
            if one.requires_grad:
                one.grad = torch.randn(one.shape, generator=random, dtype=one.dtype)
        for optimizer in optimizers.values():
            optimizer.step()
    for one, other in zip(fused.parameters(), plainly.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    for name, state in updating.states()["optimizers"].items():
        expected = optimizers[name].state_dict()
        assert state["param_groups"] == expected["param_groups"], "a checkpoint is that of a plain optimiser"
        torch.testing.assert_close(state["state"], expected["state"], rtol=1e-12, atol=1e-15, check_dtype=False)


def test_states_of_plain_optimisers_are_gone_on_with_to_the_bit() -> None:
    """As an earlier version has written them, or a run with DeepSpeed."""
    whole, cut = networks(), networks()
    updating = plain(whole)
    stepped(whole, updating, 0)
    cut.load_state_dict(whole.state_dict())
    states = copy.deepcopy(updating.states())
    assert all(group["fused"] is None for one in states["optimizers"].values() for group in one["param_groups"])
    continued = plain(cut)
    continued.load(states)
    for built, one in ((whole, updating), (cut, continued)):
        stepped(built, one, 1)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}


class NoteWaits(TorchDispatchMode):
    """Notes what makes the host wait for what a device computes."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if (name := func.name().removeprefix("aten::").partition(".")[0]) in WAITS:
            self.noted.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("scale", "waits"), [(None, []), (8.0, ["_local_scalar_dense"])])
def test_the_host_waits_for_nothing_in_a_step_but_with_a_loss_scaler_once(
    tmp_path: Path, scale: float | None, waits: list[str]
) -> None:
    """On one rank, from the backward passes to the log; what scaled losses have overflowed is for the host to know."""
    built = networks()
    updating = plain(built, None if scale is None else GradScaler("cpu", init_scale=scale))
    log = TrainingLog(Curves(tmp_path, 0), "r", 1, 0)
    losses = {"loss/main": torch.ones(()), "loss/auxiliary": torch.ones(())}
    stepped(built, updating, 0)
    with NoteWaits() as noting:
        updating.begin_step()
        stepped(built, updating, 1)
        log.add(losses, True)
    log.close()
    assert noting.noted == waits


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("before", [torch.channels_last, torch.contiguous_format])
def test_states_of_another_order_in_memory_go_on_as_they_were(
    kind: Callable[..., torch.optim.Optimizer], before: torch.memory_format
) -> None:
    """As those of a checkpoint from a CPU on a GPU, where convolutions are of channels last, and the other way."""
    after = torch.contiguous_format if before == torch.channels_last else torch.channels_last
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = torch.randn(4, 4, 3, 3, 3, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"momentum": 0.9} if kind is SGD else {}

    def begin(values: Tensor, order: torch.memory_format) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(values.clone(memory_format=order))
        optimizer = kind([parameter], lr=0.1, **options)
        fuse(optimizer)
        return parameter, optimizer

    def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    parameter, optimizer = begin(weights, before)
    for gradient in gradients[:2]:
        step(parameter, optimizer, gradient)
    other, continued = begin(parameter.detach(), after)
    load_plain_state(continued, copy.deepcopy(plain_state(optimizer)))
    for one, optimizer_of_one in ((parameter, optimizer), (other, continued)):
        step(one, optimizer_of_one, gradients[2])
    torch.testing.assert_close(other, parameter, rtol=0, atol=1e-12)
