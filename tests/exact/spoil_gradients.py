"""A training with some infinite gradients: `spoil_gradients.py WHAT FIRST LAST RANK SCALE PROGRAM words…`.

From the FIRST to the LAST step of this process, the gradients of WHAT, a network, are infinite on RANK; or, if WHAT is
"activations", an activation of the segmentation network is; or, if it is "statistics" or "losses", a running mean, or
what is logged of a loss, on every rank.
Losses are scaled, as in half precision, from SCALE on; 0: not at all. After each step the ranks hold their weights to
each other, bit for bit.
"""

import os
import runpy
import sys
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from esl_dist.models.weight_files import digest_of_weights
from esl_dist.ranks.collectives import require_same_on_ranks
from esl_dist.ranks.session import Ranks
from esl_dist.training import loop, setup
from esl_dist.training.optimisation import Updating
from esl_dist.training.setup import State
from esl_dist.training.step import Contribution
from esl_dist.training.zero import DividedUpdating

what, first, last, rank, scale = sys.argv[1], *map(int, sys.argv[2:6])
sys.argv = sys.argv[6:]
plain_updating, plain_add_gradients = setup._updating, loop.add_gradients


def spoiled_updating(state: State, ranks: Ranks) -> Updating | DividedUpdating:
    if scale > 0:
        object.__setattr__(ranks, "scaler", GradScaler("cpu", init_scale=scale))
    updating = plain_updating(state, ranks)
    plain_backward, plain_update = updating.backward, updating.update
    step = 1

    def spoils(part: str) -> bool:
        on_this_rank = part in ("statistics", "losses") or int(os.environ["RANK"]) == rank
        return what == part and first <= step <= last and on_this_rank

    def overflow(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if spoils("activations"):
            output[0, 0, 0, 0] = float("inf")

    def backward(loss: Tensor, part: str) -> None:
        if spoils(part):
            loss.register_hook(lambda gradient: gradient * float("inf"))
        plain_backward(loss, part)

    def add_gradients(*arguments: Any) -> Contribution:
        losses, counts = plain_add_gradients(*arguments)
        factor = float("inf") if spoils("losses") else 1.0
        return Contribution({name: loss * factor for name, loss in losses.items()}, counts)

    def update(place: str) -> bool:
        nonlocal step
        if spoils("statistics"):
            state.networks["segmentation"].bn1.running_mean[0] = float("inf")
        step += 1
        updated = plain_update(place)
        for weights in state.networks.values():
            require_same_on_ranks(digest_of_weights(weights.state_dict()), f"weights after {place}")
        scaler = ranks.scaler
        require_same_on_ranks(f"{updated} {scaler and scaler.state_dict()}", f"loss scale after {place}")
        return updated

    loop.add_gradients = add_gradients
    state.networks["segmentation"].conv1.register_forward_hook(overflow)
    updating.backward, updating.update = backward, update
    return updating


setup._updating = spoiled_updating
runpy.run_path(sys.argv[0], run_name="__main__")
