"""How losses become gradients, and gradients new weights: on all networks that are trained, or on none."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import fuse, load_plain_state, plain_state, polynomial_rate
from esl_dist.errors import UserError
from esl_dist.models.batch_norm import running_statistics
from esl_dist.ranks.gradients import StepGradients

PUBLISHED_STEPS, PUBLISHED_SCHEDULE = 120_000, 250_000

NOTED_SHARE = 0.6
"""Of the base rate: the published training ends with 0.55 of it (120 000 of 250 000 steps), and one that ends with more
than 0.6 is one whose schedule was perhaps forgotten."""


def schedule_note(options: settings.Optimizer, steps: int) -> str:
    """Return a sentence for a training whose rate barely falls, or only rises; empty where it falls.

    Fewer `steps` alone leave the schedule as it was, as published trainings do: 120 000 of 250 000 steps.

    Args:
        options: the schedule.
        steps: where the training ends.
    """
    if steps < options.warm_up_steps:
        return (
            f"the learning rate only rises, for optimizer.warm_up_steps={options.warm_up_steps} is more than "
            f"steps={steps}; give fewer of the former for one that falls as in the published trainings"
        )
    left = polynomial_rate(1.0, min(steps, options.schedule_steps), options)
    if left <= NOTED_SHARE or options.schedule_power == 0:
        return ""
    advised = round(steps * PUBLISHED_SCHEDULE / PUBLISHED_STEPS)
    return (
        f"the learning rate falls by {100 * (1 - left):.0f} % only, for optimizer.schedule_steps="
        f"{options.schedule_steps} is {round(options.schedule_steps / steps, 1):g} times steps={steps}; give "
        f"optimizer.schedule_steps={advised} for one that falls as in the published trainings"
    )


class Updating:
    """How the losses of a step become new weights: plain optimisers, each rank holding all of their states.

    With a loss scaler, gradients or running statistics that are not finite make every optimiser skip, on every rank
    (the sums of ranks are not finite anywhere), and the scale is lowered. The batch-norm statistics go back.
    """

    def __init__(self, networks: nn.Module, optimizers: dict[str, Optimizer], scaler: GradScaler | None) -> None:
        """Use `optimizers` for what they train of `networks`; without a scaler, losses are not scaled.

        Raises:
            ValueError: an optimiser trains what is in none of the networks.
        """
        self._networks, self._optimizers, self._scaler = networks, optimizers, scaler
        self._gradients = StepGradients(
            in_order_of_completion(networks, name, optimizer) for name, optimizer in optimizers.items()
        )
        self._statistics: list[Tensor] = []
        self._measures, self._norms = False, dict[str, Tensor]()
        for optimizer in optimizers.values():
            fuse(optimizer)

    def begin_step(self, measures: bool = False) -> None:
        """Come before the passes of a step: copy what an overflow would spoil.

        Args:
            measures: whether the norms of its gradients are wanted.
        """
        self._measures = measures
        if self._scaler is not None:
            self._statistics = [one.clone() for one in running_statistics(self._networks)]

    def backward(self, loss: Tensor, network: str) -> None:
        """Add the gradients of a loss for the network of that name; those that are complete by it begin to be summed.

        Raises:
            ValueError: the method does not make the passes that it made in the first step.
        """
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def update(self, place: str) -> bool:
        """Sum the gradients over the ranks, step every optimiser, forget the gradients.

        Args:
            place: named in messages.

        Returns:
            Whether the networks were updated.

        Raises:
            UserError: on every rank, if gradients or running statistics are not finite, and no lower scale can help.
            ValueError: ranks did not make the same passes.
        """
        self._gradients.finish_sums()
        finite = self._scaler is None or self._unscale(self._scaler, place)
        if self._measures:
            self._norms = dict(zip(self._optimizers, self._gradients.norms(), strict=True))
        if finite:
            for optimizer in self._optimizers.values():
                optimizer.step()
        else:
            for own, before in zip(running_statistics(self._networks), self._statistics, strict=True):
                own.copy_(before)
        self._gradients.forget()
        return finite

    def _unscale(self, scaler: GradScaler, place: str) -> bool:
        infinite: list[Tensor] = []
        for optimizer in self._optimizers.values():
            scaler.unscale_(optimizer)
            infinite += scaler._found_inf_per_device(optimizer).values()
        # A teacher has no gradients: that it overflowed shows in its statistics alone.
        if statistics := [one for one in running_statistics(self._networks) if one.is_floating_point()]:
            infinite[0] += ~torch.stack(torch._foreach_norm(statistics, math.inf)).isfinite().all()
        # The one time in a step that the host waits for a GPU: whether there is an update is for it to know.
        finite = not bool(torch.stack(infinite).any())
        if not finite and scaler.get_scale() < 1:
            raise UserError(
                f"{place}: gradients or batch-norm statistics are no finite numbers, even at a loss scale of "
                f"{scaler.get_scale():g}; go on with mixed precision bf16 or none, or start a run of another name with "
                "a lower optimizer.learning_rate"
            )
        scaler.update()
        return finite

    def norms(self) -> dict[str, Tensor]:
        """Return the norms of the gradients of the last step that was measured, by network, on the device.

        They are those of the global batch, the same on every rank; not finite where half precision overflowed.
        """
        return self._norms

    def states(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: `optimizers`, as plain ones have them, and `scaler`; called on every rank."""
        return {
            "optimizers": {name: plain_state(optimizer) for name, optimizer in self._optimizers.items()},
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
        }

    def load(self, states: dict[str, Any]) -> None:
        """Go on from such states; without the scale where the run had no scaler before."""
        for name, optimizer in self._optimizers.items():
            load_plain_state(optimizer, states["optimizers"][name])
        if self._scaler is not None and states["scaler"]:
            self._scaler.load_state_dict(states["scaler"])


def in_order_of_completion(networks: nn.Module, name: str, optimizer: Optimizer) -> list[nn.Parameter]:
    """Return what an optimiser trains in the order in which a backward pass completes it.

    That is roughly the reverse of their use, for which the order in which a network names them stands.
    """
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    ordered = [parameter for parameter in reversed(list(networks.parameters())) if parameter in trained]
    if len(ordered) < len(trained):
        raise ValueError(f"the optimiser of {name!r} trains a parameter that is in no network, so no checkpoint has it")
    return ordered
