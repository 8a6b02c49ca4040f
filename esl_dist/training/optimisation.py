"""Optimisers, the polynomial schedule, and the update that either happens on all networks or on none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import polynomial_rate
from esl_dist.errors import UserError
from esl_dist.ranks.collectives import sum_gradients

PUBLISHED_STEPS, PUBLISHED_SCHEDULE = 120_000, 250_000

NOTED_SHARE = 0.6
"""Of the base rate: the published training ends with 0.55 of it (120 000 of 250 000 steps), and one that ends with more
than 0.6 is one whose schedule was perhaps forgotten."""


def schedule_note(options: settings.Optimizer, steps: int) -> str:
    """Return a sentence for a training whose rate barely falls; empty where it does.

    Fewer `steps` alone leave the schedule as it was, as published trainings do: 120 000 of 250 000 steps.

    Args:
        options: the schedule.
        steps: where the training ends.
    """
    left = polynomial_rate(1.0, min(steps, options.schedule_steps), options)
    if left <= NOTED_SHARE or options.schedule_power == 0:
        return ""
    advised = round(steps * PUBLISHED_SCHEDULE / PUBLISHED_STEPS)
    return (
        f"the learning rate falls by {100 * (1 - left):.0f} % only, for optimizer.schedule_steps="
        f"{options.schedule_steps} is {round(options.schedule_steps / steps, 1):g} times steps={steps}; give "
        f"optimizer.schedule_steps={advised} for one that falls as in the published trainings"
    )


@dataclass(frozen=True)
class Updating:
    """How losses become gradients, and gradients new weights.

    Attributes:
        backward: adds a loss's gradients, scaled where precision needs it; the name is that of the optimiser whose
            network it is for.
        update: uses the gradients of all networks and forgets them; says whether the networks were updated;
            without a loss scaler they are. What it is given names the place in messages.
        states: returns the optimisers' state dicts by name, as plain optimisers have them; called on every rank.
        load: fills the optimisers with such states.
    """

    backward: Callable[[Tensor, str], None]
    update: Callable[[str], bool]
    states: Callable[[], dict[str, Any]]
    load: Callable[[dict[str, Any]], None]


def plain_updating(optimizers: dict[str, Optimizer], scaler: GradScaler | None) -> Updating:
    """Return how plain optimisers are used, each rank holding all of their states."""

    def backward(loss: Tensor, part: str) -> None:
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def load(states: dict[str, Any]) -> None:
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(states[name])

    return Updating(
        backward,
        lambda place: update(list(optimizers.values()), scaler, place),
        lambda: {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        load,
    )


def update(optimizers: Sequence[Optimizer], scaler: GradScaler | None, place: str) -> bool:
    """Sum the gradients over the ranks, step every optimiser, forget the gradients.

    With a loss scaler, gradients that are not finite make every optimiser skip, on every rank (their sum is not finite
    anywhere), and the scale is lowered.

    Args:
        optimizers: all of the step's.
        scaler: the one that scaled the losses; None: they are not scaled.
        place: named in messages.

    Returns:
        Whether the networks were updated.

    Raises:
        UserError: on every rank, if a step would be skipped where losses are scaled down already.
    """
    parameters = [
        parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    ]
    sum_gradients(parameters)
    finite = True
    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        largest = [parameter.grad.abs().amax().float() for parameter in parameters if parameter.grad is not None]
        finite = bool(torch.stack(largest).isfinite().all())
        if not finite and scaler.get_scale() < 1:
            raise UserError(
                f"{place}: gradients are no finite numbers, even at a loss scale of {scaler.get_scale():g}; go on with "
                "mixed precision bf16 or none, or start a run of another name with a lower optimizer.learning_rate"
            )
        scaler.update()
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return finite
