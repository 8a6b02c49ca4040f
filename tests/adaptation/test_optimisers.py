"""The optimisers that do without torch's compiler step as torch's own do, to the bit, and keep the same state.

And the segmentation network's AdamW and its warm-up are those of their formulas.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import SGD, Adam, AdamW, segmentation_optimizer, set_rates, warm_up
from esl_dist.models.deeplab import DeepLab


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
    [
        (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}),
        (Adam, torch.optim.Adam, {"betas": (0.9, 0.99)}),
        (AdamW, torch.optim.AdamW, {"betas": (0.9, 0.999), "weight_decay": 0.01}),
    ],
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


ADAMW = settings.Optimizer(
    kind="adamw",
    learning_rate=0.02,
    betas=[0.8, 0.95],
    weight_decay=0.3,
    schedule_steps=20,
    schedule_power=1.0,
    warm_up_steps=3,
    warm_up_from=0.1,
)


class WithEmbeddings(DeepLab):
    """The tiny network with the parameters of a vision transformer that are not drawn to 0."""

    def __init__(self) -> None:
        super().__init__("tiny", 2, True, per_domain=False)
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 3))
        self.cls_token = nn.Parameter(torch.ones(1, 1, 3))
        self.norm = nn.LayerNorm(3)

    def no_decay(self, name: str) -> bool:
        return name in ("pos_embed", "cls_token")


def test_adamw_draws_all_but_norms_biases_embeddings_and_tokens_to_zero() -> None:
    network = WithEmbeddings()
    optimizer = segmentation_optimizer(network, ADAMW)
    names = {parameter: name for name, parameter in network.named_parameters() if parameter.requires_grad}
    by_name = {names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(by_name) == sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    left_alone = {name for name, group in by_name.items() if group["weight_decay"] == 0}
    biases = {name for name in by_name if name.endswith(".bias")}
    assert left_alone == {"pos_embed", "cls_token", "norm.weight"} | biases
    assert {group["weight_decay"] for name, group in by_name.items() if name not in left_alone} == {0.3}
    assert by_name["layer6.conv2d_list.0.bias"]["rate_factor"] == by_name["layer6.conv2d_list.0.weight"]["rate_factor"]
    assert sorted(group["name"] for group in optimizer.param_groups) == [
        *("blocks", "blocks_without_decay", "heads", "heads_without_decay", "shortcuts", "stem")
    ]


def test_adamw_steps_as_loshchilov_and_hutter_write_it() -> None:
    torch.manual_seed(2)
    network = DeepLab("tiny", 2, True, per_domain=False).double()
    optimizer = segmentation_optimizer(network, ADAMW)
    groups = {one: group for group in optimizer.param_groups for one in group["params"]}
    weights = {one: one.detach().numpy().copy() for one in groups}
    first, second = ({one: np.zeros(one.shape) for one in groups} for _ in range(2))
    (beta1, beta2), random = ADAMW.betas, np.random.default_rng(0)
    for step in range(5):
        set_rates({"segmentation": optimizer}, step, ADAMW)
        warmth = 1 - (1 - step / 3) * 0.9 if step < 3 else 1
        for one, group in groups.items():
            gradient = random.normal(size=one.shape)
            one.grad = torch.from_numpy(gradient)
            rate = 0.02 * (1 - step / 20) * warmth * (10 if group["name"].startswith("heads") else 1)
            first[one] = beta1 * first[one] + (1 - beta1) * gradient
            second[one] = beta2 * second[one] + (1 - beta2) * gradient**2
            mean, variance = first[one] / (1 - beta1 ** (step + 1)), second[one] / (1 - beta2 ** (step + 1))
            decay = 0.3 if one.ndim > 1 else 0
            weights[one] = weights[one] - rate * (mean / (np.sqrt(variance) + 1e-8) + decay * weights[one])
        optimizer.step()
    for one in groups:
        np.testing.assert_allclose(one.detach().numpy(), weights[one], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("share", "steps"), [(1e-6, 1500), (1e-3, 1500), (0.0, 4), (1.0, 4)])
def test_a_warm_up_from_a_share_is_mmcvs(share: float, steps: int) -> None:
    options = replace(ADAMW, warm_up_steps=steps, warm_up_from=share)
    for step in (0, 1, steps // 2, steps - 1):
        assert warm_up(step, options) == pytest.approx(share + (1 - share) * step / steps, rel=1e-12)
    assert warm_up(steps, options) == warm_up(steps + 1, options) == 1
