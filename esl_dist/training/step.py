"""One training step, for every method: the passes over each of the rank's micro-batches, which add up gradients."""

from collections.abc import Sequence

from esl_dist import config as settings
from esl_dist.adaptation.methods import Method
from esl_dist.adaptation.passes import Losses, MicroBatch, Networks, Normaliser, Precision, Step
from esl_dist.ranks.collectives import note_progress


def add_gradients(
    networks: Networks,
    method: Method,
    options: settings.Method,
    batches: Sequence[MicroBatch],
    normaliser: Normaliser,
    precision: Precision,
) -> Losses:
    """Run every forward and backward pass of a step; returns this rank's shares of the losses.

    Args:
        networks: in training mode, on the device of the batches.
        method: what makes the passes.
        options: its settings.
        batches: this rank's part of the global batch, in micro-batches of one size.
        normaliser: see `Normaliser`.
        precision: see `Precision`.
    """
    losses: Losses = {}
    for batch in batches:
        method.passes(Step(networks, batch, normaliser, options, precision, losses))
        note_progress()
    return losses
