"""DeepSpeed's ZeRO: optimiser states (stage 1) and gradients (stage 2) divided over the ranks.

Accelerate's plugin is made for one model and one optimiser, and DeepSpeed averages gradients. So each network gets an
engine of its own here, every loss is multiplied by the number of ranks, and DeepSpeed's own counting of passes is off,
for a step of AdvEnt has several backward passes through one network, and one update of all of them.

Checkpoints are those of a run without DeepSpeed: a run may go on with it, without it, or on another number of ranks.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esl_dist.errors import UserError
from esl_dist.ranks.collectives import world_size


@dataclass(frozen=True)
class _Divided:
    """A network whose optimiser DeepSpeed has divided.

    Attributes:
        engine: DeepSpeed's.
        optimizer: the torch optimiser inside, whose only parameter a group is this rank's part of all.
        groups: the parameters of each group, in the order of the plain optimiser.
    """

    engine: Any
    optimizer: Optimizer
    groups: list[list[nn.Parameter]]


class DividedUpdating:
    """What `training.optimisation.Updating` does, by optimisers that DeepSpeed has divided over the ranks.

    Their states are told as plain ones.
    """

    def __init__(self, networks: nn.ModuleDict, optimizers: dict[str, Optimizer], stage: int) -> None:
        """Divide the optimisers; the networks have their weights by then.

        Args:
            networks: by name; those without an optimiser are left out.
            optimizers: plain ones, without state; they stay the place to set learning rates.
            stage: 1 or 2.
        """
        self._divided = {name: _divide(networks[name], optimizer, stage) for name, optimizer in optimizers.items()}

    def begin_step(self, measures: bool = False) -> None:
        """Come before the passes of a step: DeepSpeed measures gradients itself, and there is nothing to put away."""

    def backward(self, loss: Tensor, network: str) -> None:
        """Add the gradients of a loss, which DeepSpeed divides by the number of ranks."""
        self._divided[network].engine.backward(loss * world_size())

    def update(self, place: str) -> bool:
        """Step every optimiser."""
        for one in self._divided.values():
            one.engine.step()
        # Where a network's gradients are not finite, DeepSpeed leaves out its step without a word; on all ranks, for it
        # looks at a norm summed over them.
        skipped = [name for name, one in self._divided.items() if not one.engine.was_step_applied()]
        if skipped:
            raise UserError(
                f"{place}: gradients of {' and '.join(skipped)} are no finite numbers; start a run of another name "
                "with a lower optimizer.learning_rate"
            )
        return True

    def norms(self) -> dict[str, Tensor]:
        """Return the norms of the last step's gradients by network: those of the global batch, over all parts."""
        return {name: torch.as_tensor(one.engine.get_global_grad_norm()) for name, one in self._divided.items()}

    def states(self) -> dict[str, Any]:
        """Return the states that plain optimisers would have, by name; every rank has to call it."""
        return {"optimizers": {name: _gather(one) for name, one in self._divided.items()}, "scaler": {}}

    def load(self, states: dict[str, Any]) -> None:
        """Give every rank its part of such states."""
        for name, one in self._divided.items():
            _load(one, states["optimizers"][name])


def _divide(network: nn.Module, optimizer: Optimizer, stage: int) -> _Divided:
    import deepspeed  # it is slow to import, and optional

    # On CPU it would compile an operator of its inference, which takes minutes and a compiler. No other is asked for.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    # It sends weights as bytes, by a view that channels last do not have.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    groups = [list(group["params"]) for group in optimizer.param_groups]
    # Of each DeepSpeed makes a buffer in every step: of 500 million numbers unless it is told how many there are. It
    # asks for an even number.
    bucket_size = 2 * ceil(sum(parameter.numel() for group in groups for parameter in group) / 2)
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=optimizer,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "zero_optimization": {
                "stage": stage,
                "overlap_comm": False,
                "reduce_bucket_size": bucket_size,
                "allgather_bucket_size": bucket_size,
            },
            "zero_allow_untested_optimizer": True,
            # DeepSpeed clips to a norm of 1 unless it is told not to.
            "gradient_clipping": 0.0,
        },
    )
    return _Divided(engine, optimizer, groups)


def _gather(one: _Divided) -> dict[str, Any]:
    """Return the state dict that the plain optimiser would have; every rank has to call it.

    SGD without momentum has no states, and the dict has none for its parameters.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    _link_states(one)
    plain: dict[int, dict[str, Any]] = {}
    groups = []
    numbering = count()
    for parameters, group in zip(one.groups, one.optimizer.param_groups, strict=True):
        part = one.optimizer.state[group["params"][0]]
        numbers = [next(numbering) for _ in parameters]
        for number, parameter in zip(numbers, parameters, strict=True):
            values = {
                key: safe_get_full_optimizer_state(parameter, key).cpu() if _is_divided(value, group) else value
                for key, value in part.items()
            }
            if values:
                plain[number] = values
        groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": numbers})
    return {"state": plain, "param_groups": groups}


def _load(one: _Divided, state: dict[str, Any]) -> None:
    """Give every rank its part of a plain optimiser's state.

    A parameter without state, in a group where others have one, gets zeros, which is what an optimiser begins with.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    states = [[state["state"].get(number, {}) for number in group["params"]] for group in state["param_groups"]]
    for group, of_group in zip(one.optimizer.param_groups, states, strict=True):
        part = group["params"][0]
        one.optimizer.state[part] = {
            key: torch.zeros_like(part) if value.dim() > 0 else value.clone()
            for values in of_group
            for key, value in values.items()
        }
    _link_states(one)
    for parameters, of_group in zip(one.groups, states, strict=True):
        for parameter, values in zip(parameters, of_group, strict=True):
            for key, value in values.items():
                if value.dim() > 0:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _link_states(one: _Divided) -> None:
    """Let DeepSpeed find the states of each parameter: it looks for them once, before there are any."""
    one.engine.optimizer._hp_optimizer_states_linked = False
    one.engine.optimizer._lazy_init_hp_params_optimizer_state()


def _is_divided(value: Any, group: dict[str, Any]) -> bool:
    return isinstance(value, Tensor) and value.shape == group["params"][0].shape
