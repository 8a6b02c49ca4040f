"""DeepSpeed's engines: what they are told. What comes of it is in tests/exact/test_deepspeed.py."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from esl_dist.training.zero import DividedUpdating


def deepspeed(initialize: Callable[..., tuple[None]]) -> Any:
    """Return what stands in its place, in which no operator is compiled."""
    return SimpleNamespace(initialize=initialize, ops=SimpleNamespace())


@pytest.mark.parametrize("inputs", [1, 2])
def test_buffers_are_as_large_as_the_network_and_even(monkeypatch: pytest.MonkeyPatch, inputs: int) -> None:
    """An engine would take 2 GB for each in every step, on a CPU only in name: no training here could show it."""
    told: list[dict[str, Any]] = []

    def initialize(**given: Any) -> tuple[None]:
        told.append(given["config"]["zero_optimization"])
        return (None,)

    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed(initialize))
    networks = nn.ModuleDict({"one": nn.Linear(inputs, 1), "other": nn.Linear(10, 5)})
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=1.0) for name, network in networks.items()}
    DividedUpdating(networks, dict(optimizers), stage=2)
    for size in ("reduce_bucket_size", "allgather_bucket_size"):
        assert [one[size] for one in told] == [{1: 2, 2: 4}[inputs], 56]


def test_an_engine_is_given_weights_that_it_can_send_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It views them so when it begins; those of channels last, as they are on GPUs, have no such view."""
    sent: list[int] = []

    def initialize(model: nn.Module, **_: Any) -> tuple[None]:
        sent.extend(one.data.view(-1).view(torch.uint8).numel() for one in model.parameters())
        return (None,)

    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed(initialize))
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    weights = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    DividedUpdating(nn.ModuleDict({"one": network}), {"one": optimizer}, stage=2)
    assert sent == [4 * 3 * 4 * 9, 4 * 4]
    assert torch.equal(network.weight, weights)
    assert optimizer.param_groups[0]["params"][0] is network.weight
