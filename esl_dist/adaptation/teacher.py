"""The teacher: a moving average of the network that is trained, which labels the target for it.

Tarvainen and Valpola (arXiv 1703.01780); with the momentum of DACS (arXiv 2007.08702), DAFormer (2111.14887) and MIC
(2212.01322), which rises in the first steps. Their programs average at the start of a step, before the network changes;
here it is done after the update of the step before, of the same weights with the same momentum: the same teacher.
"""

import copy

import torch
from torch import Tensor

from esl_dist.adaptation.passes import SEGMENTATION, Networks, Step, log_probabilities_at
from esl_dist.models.segmentation import SegmentationNetwork

TEACHER = "teacher"
"""The teacher's name among the networks, and in checkpoints."""


def build_teacher(segmentation: SegmentationNetwork) -> SegmentationNetwork:
    """Return the teacher of a network: its copy, which no gradient reaches.

    It drops nothing at random, as no network here does (`models.timm_networks`). It stays in training mode: its batch
    norms normalise by the statistics of what it sees, and keep running ones of their own.
    """
    return copy.deepcopy(segmentation).requires_grad_(False)


def momentum_after(steps: int, highest: float) -> float:
    """Return min(1 − 1 / (steps + 1), highest): the teacher's weight in its average with the network after `steps`.

    So it is the mean of the initial network and all that followed, until the highest momentum is reached.
    """
    return min(1 - 1 / (steps + 1), highest)


@torch.no_grad()
def follow(networks: Networks, steps: int, highest: float) -> None:
    """Move the teacher's parameters towards the network that is trained; buffers are no part of the average.

    Args:
        networks: the teacher and the network that is trained.
        steps: done so far.
        highest: momentum of the average.
    """
    own: list[Tensor] = [*networks[TEACHER].parameters()]
    student: list[Tensor] = [*networks[SEGMENTATION].parameters()]
    torch._foreach_lerp_(own, student, 1 - momentum_after(steps, highest))


@torch.no_grad()
def taught(step: Step) -> Tensor:
    """Return ln p of the teacher's main level on the target as it is, at the size of its pictures."""
    images = step.samples("target")["images"]
    with step.precision.autocast():
        logits: Tensor = step.network(TEACHER)(images, "target")["main"]
    return log_probabilities_at(logits, images.shape[2:])
