"""Batch norm sees the global batch on any number of ranks, and keeps the domains apart where it is told to."""

from itertools import product

import pytest
import torch
from torch import nn

from esl_dist.models.batch_norm import (
    DomainBatchNorm2d,
    estimate_anew,
    finish_pass,
    running_statistics,
    set_domain,
    unfed,
)
from tests.models.batch_norm_passes import HALF_PRECISIONS, Case, half_batch, results_of_rank, run_passes
from tests.on_ranks import run_on_ranks
from tests.training.waits import Device, NoteWaits

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
CASES = [Case(*choices) for choices in product((False, True), repeat=3)]


def batch(seed: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, channels, 5, 6, generator=generator, dtype=torch.float64) * (1 + seed) + seed


def layer(per_domain: bool, per_picture: bool = False) -> DomainBatchNorm2d:
    return DomainBatchNorm2d(3, per_domain, per_picture).double().train()


def passed(network: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return the output of a whole pass in training."""
    output: torch.Tensor = network(values)
    finish_pass(network)
    return output


@pytest.mark.exact
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_are_one_process_with_the_whole_batch(world_size: int) -> None:
    assert_one_process(run_on_ranks(results_of_rank, CASES, ranks=world_size))


@pytest.mark.exact
@pytest.mark.usefixtures("gpu")
def test_ranks_that_compute_on_a_gpu_are_one_process_on_the_processor() -> None:
    assert_one_process(run_on_ranks(results_of_rank, CASES, "cuda"))


def assert_one_process(ranks: list[dict]) -> None:
    for case in CASES:
        expected = run_passes(case, rank=0, world_size=1)
        parts = [results[case] for results in ranks]
        for name, tensor in expected.items():
            values = [part[name] for part in parts]
            if name.startswith("state"):
                for value in values:
                    torch.testing.assert_close(value, tensor, msg=lambda text: f"{case} {name}: {text}", **TOLERANCE)  # noqa: B023
                continue
            whole = torch.stack(values).sum(0) if name.startswith("sum") else torch.cat(values)
            scale = float(tensor.abs().max())
            assert float((whole - tensor).abs().max()) <= 1e-12 * max(scale, 1.0), (case, name)


@pytest.mark.exact
def test_ranks_take_mean_and_variance_of_half_precision_in_float32() -> None:
    ranks = run_on_ranks(results_of_rank, [])
    for precision in HALF_PRECISIONS:
        whole = nn.BatchNorm2d(3).train()
        expected = whole(half_batch(precision).float()).to(precision)
        for results in (one[precision] for one in ranks):
            for name in ("running_mean", "running_var"):
                torch.testing.assert_close(results[name], whole.state_dict()[name], rtol=1e-5, atol=0)
        output = torch.cat([one[precision]["output"] for one in ranks])
        assert output.dtype == precision
        # One unit in the last place, where float32 lies between two numbers of half precision.
        torch.testing.assert_close(output, expected, rtol=torch.finfo(precision).eps, atol=1e-4)


def copies(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("per_domain", [False, True])
def test_statistics_that_are_put_back_are_those_before_a_pass_that_overflowed(per_domain: bool) -> None:
    network = nn.Sequential(layer(per_domain), nn.Sequential(layer(per_domain)))
    passed(network, batch(1))
    before = copies(network.state_dict())
    statistics = [one.clone() for one in running_statistics(network)]
    for domain in ("source", "target"):
        set_domain(network, domain)
        passed(network, batch(2).fill_(float("inf")))
    assert network.state_dict()["1.0.running_mean"].isnan().all()
    for own, at_first in zip(running_statistics(network), statistics, strict=True):
        own.copy_(at_first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_in_training_it_is_torchs_batch_norm() -> None:
    ours, theirs = layer(False), nn.BatchNorm2d(3).double().train()
    for seed in range(3):
        torch.testing.assert_close(passed(ours, batch(seed)), theirs(batch(seed)), **TOLERANCE)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **TOLERANCE)
    torch.testing.assert_close(ours.eval()(batch(9)), theirs.eval()(batch(9)), **TOLERANCE)


@pytest.mark.parametrize("per_domain", [False, True])
def test_scale_and_shift_are_frozen(per_domain: bool) -> None:
    assert not any(parameter.requires_grad for parameter in layer(per_domain).parameters())


@pytest.mark.parametrize(("domain", "fed"), [("source", "source_"), ("target", "running_")])
def test_a_pass_feeds_only_the_statistics_of_its_domain(domain: str, fed: str) -> None:
    norm = layer(per_domain=True)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    set_domain(norm, domain)
    passed(norm, batch(1))
    changed = {name for name, tensor in norm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed - {"num_batches_tracked"} == {f"{fed}mean", f"{fed}var"}


def test_shared_statistics_are_fed_by_both_domains() -> None:
    norm = layer(per_domain=False)
    for seed, domain in enumerate(("source", "target")):
        before = norm.running_mean.clone()
        set_domain(norm, domain)
        passed(norm, batch(seed + 1))
        momentum = 0.1
        expected = (1 - momentum) * before + momentum * batch(seed + 1).mean((0, 2, 3))
        torch.testing.assert_close(norm.running_mean, expected, **TOLERANCE)
    assert norm.source_mean is None
    assert not any(name.startswith("source") for name in norm.state_dict())


@pytest.mark.parametrize("domain", ["source", "target"])
def test_evaluation_uses_the_statistics_of_the_domain(domain: str) -> None:
    norm = layer(per_domain=True)
    statistics = {"source": (2.0, 4.0), "target": (-1.0, 0.25)}
    norm.source_mean.fill_(2.0)
    norm.source_var.fill_(4.0)
    norm.running_mean.fill_(-1.0)
    norm.running_var.fill_(0.25)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    set_domain(norm.eval(), domain)
    mean, variance = statistics[domain]
    torch.testing.assert_close(norm(batch(3)), (batch(3) - mean) / (variance + norm.eps) ** 0.5, **TOLERANCE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_without_a_word_the_domain_is_the_target() -> None:
    norm = layer(per_domain=True)
    passed(norm, batch(1))
    assert torch.equal(norm.source_mean, torch.zeros(3, dtype=torch.float64))
    assert not torch.equal(norm.running_mean, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("per_domain", [False, True])
def test_statistics_estimated_anew_are_the_mean_over_the_passes(per_domain: bool) -> None:
    network = nn.Sequential(layer(per_domain))
    norm = network[0]
    for domain in ("source", "target"):
        set_domain(network, domain)
        passed(network, batch(7))
    source = norm.source_mean.clone() if per_domain else None
    set_domain(network, "target")
    estimate_anew(network)
    passes = [batch(seed) for seed in range(5)]
    for values in passes:
        passed(network, values)
    means = torch.stack([values.mean((0, 2, 3)) for values in passes])
    variances = torch.stack([values.var((0, 2, 3)) for values in passes])
    torch.testing.assert_close(norm.running_mean, means.mean(0), **TOLERANCE)
    torch.testing.assert_close(norm.running_var, variances.mean(0), **TOLERANCE)
    assert source is None or torch.equal(norm.source_mean, source)


def test_set_domain_reaches_every_layer() -> None:
    network = nn.Sequential(layer(True), nn.Sequential(nn.ReLU(), layer(True)))
    set_domain(network, "source")
    assert [module.domain for module in network.modules() if isinstance(module, DomainBatchNorm2d)] == ["source"] * 2


def test_each_picture_is_normalised_as_if_it_were_alone() -> None:
    norm, alone = layer(False, per_picture=True), layer(False)
    values, gradient = batch(3).requires_grad_(), batch(4)
    norm(values).backward(gradient)
    for picture, of_output in zip(values.detach().split(1), gradient.split(1), strict=True):
        part = picture.clone().requires_grad_()
        alone(part).backward(of_output)
        number = int((values == picture).flatten(1).all(1).nonzero())
        assert torch.equal(norm(values)[number], alone(part)[0])
        assert torch.equal(values.grad[number], part.grad[0])


def test_pictures_normalised_alone_feed_the_mean_of_their_statistics() -> None:
    norm = layer(per_domain=False, per_picture=True)
    values = batch(3)
    passed(norm, values)
    mean, variance = values.mean((2, 3)).mean(0), values.flatten(2).var(2).mean(0)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, **TOLERANCE)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance, **TOLERANCE)


def test_a_batch_of_one_picture_is_that_picture() -> None:
    by_picture, by_batch = layer(False, per_picture=True).float(), layer(False).float()
    for seed in range(3):
        one = batch(seed)[:1].float()
        assert torch.equal(passed(by_picture, one), passed(by_batch, one))
    assert all(map(torch.equal, by_picture.state_dict().values(), by_batch.state_dict().values()))


@pytest.mark.parametrize("per_picture", [False, True])
def test_an_unfed_pass_computes_the_same_and_feeds_nothing(per_picture: bool) -> None:
    norm = layer(False, per_picture)
    expected = passed(norm, batch(1))
    before = copies(norm.state_dict())
    with unfed(norm):
        assert torch.equal(passed(norm, batch(1)), expected)
        with unfed(norm):
            norm(batch(2))
        passed(norm, batch(3))
    assert norm.seen is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    passed(norm, batch(2))
    assert not torch.equal(norm.running_mean, before["running_mean"])


@pytest.mark.parametrize("per_picture", [False, True])
def test_channels_last_stay_so_and_come_to_the_same(per_picture: bool) -> None:
    norm, found = layer(False, per_picture), []
    for order in (torch.contiguous_format, torch.channels_last):
        values = batch(3).contiguous(memory_format=order).requires_grad_()
        output = norm(values)
        assert output.is_contiguous(memory_format=order)
        output.pow(3).sum().backward()
        found.append((output, values.grad))
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, **TOLERANCE)


def test_a_repeated_pass_that_overflows_leaves_statistics_as_they_were() -> None:
    norm = layer(False)
    passed(norm, batch(1))
    before = copies(norm.state_dict())
    with unfed(norm):
        norm(batch(2).fill_(float("inf")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


@pytest.mark.parametrize("per_picture", [False, True])
def test_statistics_are_estimated_anew_without_waiting_for_the_device(per_picture: bool) -> None:
    norm, device = layer(False, per_picture), Device()
    estimate_anew(norm)
    device.add([*norm.state_dict().values(), values := batch(1)])
    with NoteWaits(device):
        for _ in range(2):
            passed(norm, values)
    assert device.waits == []


def test_statistics_can_be_estimated_anew_twice() -> None:
    norm = layer(False)
    for seed in (1, 2):
        estimate_anew(norm)
        passed(norm, batch(seed))
    torch.testing.assert_close(norm.running_mean, batch(2).mean((0, 2, 3)), **TOLERANCE)
