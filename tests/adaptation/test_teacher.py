"""The teacher: a moving average with the published momentum, which nothing else moves."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esl_dist.adaptation.teacher import TEACHER, build_teacher, follow, momentum_after
from esl_dist.models.deeplab import DeepLab
from tests.adaptation.steps import build


def test_the_momentum_rises_as_published() -> None:
    assert [momentum_after(steps, 0.999) for steps in (0, 1, 2, 998)] == pytest.approx([0, 1 / 2, 2 / 3, 1 - 1 / 999])
    assert momentum_after(10**6, 0.999) == 0.999
    assert momentum_after(10**6, 0.0) == 0.0


def students(networks: nn.ModuleDict, steps: int) -> list[np.ndarray]:
    """Move the network at random, and the teacher after it; returns one of the network's weights after each step."""
    weight, random = networks["segmentation"].conv1.weight, torch.Generator().manual_seed(0)
    seen = [weight.detach().numpy().copy()]
    for step in range(1, steps + 1):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=random, dtype=weight.dtype))
        follow(networks, step, highest=0.8)
        seen.append(weight.detach().numpy().copy())
    return seen


def test_it_is_the_mean_of_all_networks_so_far_and_then_an_average_of_the_highest_momentum() -> None:
    networks = build("self_training")
    seen = students(networks, 4)
    mean = np.mean(seen, axis=0)
    np.testing.assert_allclose(networks[TEACHER].conv1.weight, mean, rtol=1e-12, atol=1e-15)
    networks = build("self_training")
    seen = students(networks, 6)
    # The mean of five has a momentum of 4 / 5 already.
    expected = 0.8 * (0.8 * np.mean(seen[:5], axis=0) + 0.2 * seen[5]) + 0.2 * seen[6]
    np.testing.assert_allclose(networks[TEACHER].conv1.weight, expected, rtol=1e-12, atol=1e-15)


def test_its_statistics_are_its_own_and_no_part_of_the_average() -> None:
    networks = build("self_training")
    networks["segmentation"].bn1.running_mean.fill_(7.0)
    before = {name: one.clone() for name, one in networks[TEACHER].named_buffers()}
    follow(networks, 3, 0.9)
    assert all(torch.equal(one, before[name]) for name, one in networks[TEACHER].named_buffers())


def test_no_gradient_reaches_it_and_it_shares_no_memory_with_the_network() -> None:
    network = DeepLab("tiny", 3, True, True)
    teacher = build_teacher(network)
    assert teacher.training
    assert not any(one.requires_grad for one in teacher.parameters())
    assert network.conv1.weight.requires_grad

    def storage(one: Tensor) -> int:
        return one.untyped_storage().data_ptr()

    assert {storage(one) for one in teacher.state_dict().values()}.isdisjoint(
        {storage(one) for one in network.state_dict().values()}
    )
