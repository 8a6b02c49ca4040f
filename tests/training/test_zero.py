"""DeepSpeed's engines: what they are told. What comes of it is in tests/exact/test_deepspeed.py."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from esl_dist.training.zero import DividedUpdating


@pytest.mark.parametrize("inputs", [1, 2])
def test_buffers_are_as_large_as_the_network_and_even(monkeypatch: pytest.MonkeyPatch, inputs: int) -> None:
    """An engine would take 2 GB for each in every step, on a CPU only in name: no training here could show it."""
    told: list[dict[str, Any]] = []

    def initialize(**given: Any) -> tuple[None]:
        told.append(given["config"]["zero_optimization"])
        return (None,)

    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(initialize=initialize))
    networks = nn.ModuleDict({"one": nn.Linear(inputs, 1), "other": nn.Linear(10, 5)})
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=1.0) for name, network in networks.items()}
    DividedUpdating(networks, dict(optimizers), stage=2)
    for size in ("reduce_bucket_size", "allgather_bucket_size"):
        assert [one[size] for one in told] == [{1: 2, 2: 4}[inputs], 56]
