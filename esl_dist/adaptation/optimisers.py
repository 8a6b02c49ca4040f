"""Optimisers as torch has them, the segmentation network's, and the schedule of all: a function of the step.

`SGD`, `Adam` and `AdamW` are torch's own but for one thing: torch marks some of their methods as not to be compiled, by
wrappers that import its compiler (torch._dynamo, more than a second) at their first call. Optimisers' steps are not
compiled here, so these classes have the methods inside of the wrappers.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.models.segmentation import SegmentationNetwork

Kind = TypeVar("Kind", bound=Optimizer)

FUSED = "fused"
"""Switch of a group in torch's optimisers."""

MOMENTUM = "momentum_buffer"
"""Of SGD's states."""


def _without_compiler(kind: type[Kind]) -> type[Kind]:
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    # The wrapper of this one also takes away the gradients.
    methods["step"] = torch.no_grad()(methods["step"])
    return cast("type[Kind]", type(kind.__name__, (kind,), methods))


SGD = _without_compiler(torch.optim.SGD)
Adam = _without_compiler(torch.optim.Adam)
AdamW = _without_compiler(torch.optim.AdamW)


def segmentation_optimizer(network: SegmentationNetwork, options: settings.Optimizer) -> Optimizer:
    """Return SGD or AdamW for a segmentation network; every parameter is in one group, with its part's rate factor.

    AdamW after Loshchilov and Hutter (arXiv 1711.05101), w ← w − rate · (m̂ / (√v̂ + 1e-8) + weight_decay · w), as
    DAFormer, MIC and VFM-UDA train with it. What of a part does not decay is a group of its own,
    `<part>_without_decay`: norms and biases, and what the network names, such as position embeddings and tokens.

    DAFormer leaves norms and position embeddings alone, and draws biases to 0; they are left alone here, as most
    trainings of transformers do, since a bias says where a response lies and not how complex the function is.
    """
    factors = vars(options.multipliers)
    groups = [
        {"params": parameters, "rate_factor": factors[part], "name": part}
        for part, parameters in network.parameter_groups().items()
    ]
    if options.kind == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay)
    kept = {one for name, one in network.named_parameters() if one.ndim <= 1 or network.no_decay(name)}
    parts = [one for group in groups for one in _by_decay(group, kept, options.weight_decay)]
    beta1, beta2 = options.betas
    return AdamW(parts, lr=options.learning_rate, betas=(beta1, beta2), weight_decay=options.weight_decay)


def _by_decay(group: dict[str, Any], kept: set[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    decayed = [parameter for parameter in group["params"] if parameter not in kept]
    others = [parameter for parameter in group["params"] if parameter in kept]
    parts = [
        {**group, "params": decayed, "weight_decay": weight_decay},
        {**group, "params": others, "weight_decay": 0.0, "name": f"{group['name']}_without_decay"},
    ]
    return [part for part in parts if part["params"]]


def fuse(optimizer: Optimizer) -> None:
    """Let one kernel change all weights of a group, and read and write each once, where torch has one for it.

    SGD's takes momenta of all parameters or of none: they begin as zeros, with which the first is the gradient as ever.
    With dampening it would not be, and such a group stays as it is.
    """
    for group in optimizer.param_groups:
        if FUSED in group and not group.get("dampening"):
            group[FUSED] = True
            if group.get("momentum"):
                _begin_momenta(optimizer, group["params"])


def _begin_momenta(optimizer: Optimizer, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        state = optimizer.state[parameter]
        if state.get(MOMENTUM) is None:
            state[MOMENTUM] = torch.zeros_like(parameter)


def plain_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state dict as if the optimiser were not fused, which is a matter of speed alone."""
    state = optimizer.state_dict()
    groups = [{**group, FUSED: None} if FUSED in group else group for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_plain_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from such a state dict, fused where the optimiser is."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    # Told before it loads: where it keeps counts of steps depends on it.
    groups = [{**group, FUSED: own[FUSED]} if FUSED in own else group for group, own in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
    _lay_out_like_parameters(optimizer)
    fuse(optimizer)


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    # Fused kernels go through the memory of a parameter and of its states in one order, whatever their strides say.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def polynomial_rate(base: float, step: int, options: settings.Optimizer) -> float:
    """Return base · (1 − step / schedule_steps) ^ schedule_power, a pure function of the step, counted from 0."""
    return float(base * (1 - step / options.schedule_steps) ** options.schedule_power)


def warm_up(step: int, options: settings.Optimizer) -> float:
    """Return the share of its rate that a step t, counted from 0, may take; 1 from W = warm_up_steps on.

    Without warm_up_from it is (t + 1) / W, after Goyal et al. 2017 (arXiv 1706.02677), section 2.2: the rate of a large
    batch is too large for the first steps. Theirs rises from the rate of the small batch, ours from 0. With
    warm_up_from = r it is 1 − (1 − t / W) · (1 − r), mmcv's linear warm-up, with which DAFormer (r = 1e-6) and VFM-UDA
    (1e-3) begin.
    """
    if step >= options.warm_up_steps:
        return 1.0
    if options.warm_up_from is None:
        return (step + 1) / options.warm_up_steps
    return 1 - (1 - step / options.warm_up_steps) * (1 - options.warm_up_from)


def scheduled_rate(base: float, step: int, options: settings.Optimizer) -> float:
    """Return the learning rate of a step, counted from 0: the polynomial one, warmed up."""
    return polynomial_rate(base, step, options) * warm_up(step, options)


@dataclass(frozen=True)
class Rates:
    """Learning rates of a step: the segmentation network's before its parts' factors, and each group's, by name."""

    base: float
    groups: dict[str, float]


def set_rates(optimizers: Mapping[str, Optimizer], step: int, options: settings.Optimizer) -> Rates:
    """Set every group's learning rate for `step`; an optimiser's base rate is the one that it was made with."""
    groups = {}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = scheduled_rate(optimizer.defaults["lr"], step, options) * group["rate_factor"]
            groups[group["name"]] = group["lr"]
    return Rates(scheduled_rate(options.learning_rate, step, options), groups)
