"""ClassMix: the pixels of half of a source picture's classes are laid over a target picture (arXiv 2007.07936).

As DACS uses it across domains (arXiv 2007.08702). The published programs choose among the classes of the process's
whole batch; here it is among those of the picture itself, with its own numbers, so that no rank shows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esl_dist.data.labels import IGNORE_INDEX

IDS = IGNORE_INDEX + 1


def class_mask(labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Choose ⌈k/2⌉ of the k classes of each picture at random, and return their pixels: bool, as `labels`.

    Pixels without a class count as one, as published. The host never knows which classes a picture has.

    Args:
        labels: train ids or `IGNORE_INDEX`, integer (batch, height, width).
        generators: one a picture, on the CPU.
    """
    flat = labels.flatten(1).long()
    draws = torch.stack([torch.rand(IDS, generator=one, dtype=torch.float64) for one in generators])
    occurs = torch.zeros(len(flat), IDS, dtype=torch.bool, device=flat.device).scatter_(1, flat, True)
    # Those that do not occur come last.
    order = torch.where(occurs, draws.to(flat.device, non_blocking=True), 2.0).argsort(dim=1, stable=True)
    chosen = order.argsort(dim=1) < (occurs.sum(1, keepdim=True) + 1) // 2
    return chosen.gather(1, flat).view(labels.shape)
