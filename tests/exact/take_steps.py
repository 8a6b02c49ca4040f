"""Some steps of training in float64 on any ranks: `take_steps.py METHOD PSEUDO_LABELS PASSES MODE FILE`.

The labelled pixels differ much between the images: all, one row, a corner, none; in every second step the last half of
the batch has none at all. Each rank notes the global losses of every step, and all weights and states after the last.
"""

import sys
from dataclasses import replace
from itertools import islice

import torch

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.adaptation.passes import MicroBatch, Normaliser, Precision
from esl_dist.data.loading import Batch
from esl_dist.data.sampling import rank_batches
from esl_dist.ranks.collectives import rank, sum_over_ranks, world_size
from esl_dist.ranks.session import joined_ranks
from esl_dist.training.agreement import local_valid_pixels
from esl_dist.training.optimisation import Updating
from esl_dist.training.step import add_gradients
from tests.training.test_step import IMAGES, PLAIN, build, domain_batch

STEPS = 4

method, pseudo_labels, passes, mode, file = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3]), *sys.argv[4:]
torch.set_num_threads(1)


def global_batch(step: int, domain: int) -> Batch:
    batch = domain_batch(10 * step + domain, labels=domain == 0 or pseudo_labels)
    if step % 2 == 1 and batch["labels"] is not None:
        batch["labels"][IMAGES // 2 :] = 255
        batch["valid_pixels"][IMAGES // 2 :] = 0
    return batch


def chosen(batch: Batch, positions: list[int]) -> Batch:
    labels = None if batch["labels"] is None else batch["labels"][positions]
    return Batch(
        images=batch["images"][positions],
        labels=labels,
        valid_pixels=batch["valid_pixels"][positions],
        positions=torch.tensor(positions),
    )


options = settings.Optimizer(learning_rate=1e-3, discriminator_learning_rate=1e-3)
weights = settings.Method(name=method, target=settings.LevelWeights(main=1.0, auxiliary=0.5))
losses: list[dict[str, torch.Tensor]] = []
with joined_ranks(1):
    networks = build(method)
    if mode == "evaluation":
        networks["segmentation"].eval()
    optimizers = METHODS[method].optimizers(networks, options)
    updating = Updating(networks, optimizers, None)
    precision: Precision = replace(PLAIN, backward=updating.backward)
    for step in range(STEPS):
        set_rates(optimizers, step, options)
        cuts = list(islice(rank_batches(iter(range(IMAGES)), IMAGES, passes, rank(), world_size()), passes))
        source, target = (global_batch(step, domain) for domain in (0, 1))
        own = [MicroBatch(chosen(source, places), chosen(target, places), 0, step, places) for places in cuts]
        normaliser = Normaliser(sum_over_ranks(local_valid_pixels(own)), IMAGES)
        local = add_gradients(networks, METHODS[method], weights, own, normaliser, precision).losses
        updating.update(f"step {step}")
        losses.append({name: sum_over_ranks(loss) for name, loss in local.items()})
    state = dict(networks.state_dict())
    state |= {
        f"{name}.{number}.{key}": value
        for name, optimizer in optimizers.items()
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    torch.save({"losses": losses, "state": state}, f"{file}.{rank()}")
