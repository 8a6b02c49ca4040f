"""One training step, for every method: the passes over each of the rank's micro-batches, which add up gradients."""

from collections.abc import Sequence
from typing import NamedTuple

from esl_dist import config as settings
from esl_dist.adaptation.methods import Method
from esl_dist.adaptation.passes import Counts, Losses, MicroBatch, Networks, Normaliser, Precision, Step
from esl_dist.ranks.collectives import note_progress


class Contribution(NamedTuple):
    """What a rank adds to a step besides gradients.

    Attributes:
        losses: its shares of the global batch's.
        counts: what the method has counted on it.
    """

    losses: Losses
    counts: Counts


def add_gradients(
    networks: Networks,
    method: Method,
    options: settings.Method,
    batches: Sequence[MicroBatch],
    normaliser: Normaliser,
    precision: Precision,
) -> Contribution:
    """Run every forward and backward pass of a step; returns this rank's shares of the losses, and its counts.

    Args:
        networks: in training mode, on the device of the batches.
        method: what makes the passes.
        options: its settings.
        batches: this rank's part of the global batch, in micro-batches of one size.
        normaliser: see `Normaliser`.
        precision: see `Precision`.
    """
    contribution = Contribution({}, {})
    for batch in batches:
        method.passes(Step(networks, batch, normaliser, options, precision, *contribution))
        note_progress()
    return contribution
