"""The optimisers that do without torch's compiler step as torch's own do, to the bit, and keep the same state."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from esl_dist.adaptation.optimisers import SGD, Adam


def steps(kind: Any, **options: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Make steps, reload the state half way; returns the weights and the state."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = [{"params": list(one.parameters()), "name": name} for name, one in network.named_children()]
    optimizer = kind(groups, lr=0.1, **options)
    for step in range(6):
        optimizer.zero_grad()
        network(torch.randn(3, 5)).square().sum().backward()
        optimizer.step()
        if step == 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return list(network.parameters()), optimizer.state_dict()


@pytest.mark.parametrize(
    ("own", "torchs", "options"),
    [(SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}), (Adam, torch.optim.Adam, {"betas": (0.9, 0.99)})],
)
def test_steps_and_states_have_the_bits_of_torchs_own(
    own: type[Optimizer], torchs: type[Optimizer], options: dict[str, Any]
) -> None:
    (weights, state), (expected, expected_state) = steps(own, **options), steps(torchs, **options)
    assert all(map(torch.equal, weights, expected))
    assert all(one.requires_grad and one.grad is not None for one in weights)
    assert state["param_groups"] == expected_state["param_groups"]
    for number, values in expected_state["state"].items():
        assert all(torch.equal(state["state"][number][key], value) for key, value in values.items())


def test_hooks_before_and_after_a_step_are_called() -> None:
    """GradScaler and profilers hang on torch's own class in this way."""
    parameter, calls = nn.Parameter(torch.ones(1)), []
    optimizer = SGD([parameter], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert (calls, parameter.item()) == (["before", "after"], pytest.approx(0.9))
