"""A training with some infinite gradients: `spoil_gradients.py NETWORK FIRST LAST RANK SCALE PROGRAM words…`.

From the FIRST to the LAST step of this process, those of NETWORK are infinite on RANK. Losses are scaled, as in half
precision, from SCALE on; 0: not at all. After each step the ranks hold their weights to each other, bit for bit.
"""

import os
import runpy
import sys
from dataclasses import replace

from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from esl_dist.engine import trainer
from esl_dist.engine.beginning import State
from esl_dist.engine.distributed import Ranks, refuse_disagreement
from esl_dist.engine.optimisation import Updating
from esl_dist.models.weights import digest_of_weights

network, first, last, rank, scale = sys.argv[1], *map(int, sys.argv[2:6])
sys.argv = sys.argv[6:]
plain_updating = trainer._updating


def spoiled_updating(state: State, ranks: Ranks) -> Updating:
    if scale > 0:
        ranks.accelerator.scaler = GradScaler("cpu", init_scale=scale)
    plain = plain_updating(state, ranks)
    step = 1

    def backward(loss: Tensor, part: str) -> None:
        if part == network and first <= step <= last and int(os.environ["RANK"]) == rank:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        plain.backward(loss, part)

    def update(place: str) -> bool:
        nonlocal step
        step += 1
        updated = plain.update(place)
        for weights in (state.networks.segmentation, state.networks.discriminators):
            refuse_disagreement(digest_of_weights(weights.state_dict()), f"weights after {place}")
        scaler = ranks.accelerator.scaler
        refuse_disagreement(f"{updated} {scaler and scaler.state_dict()}", f"loss scale after {place}")
        return updated

    return replace(plain, backward=backward, update=update)


trainer._updating = spoiled_updating
runpy.run_path(sys.argv[0], run_name="__main__")
