"""Blocks of a picture that the student does not see, and has to tell from what surrounds them.

Masked image consistency (MIC, arXiv 2212.01322), section 3.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from esl_dist import config as settings


def masked(images: Tensor, color: Tensor, generators: Sequence[torch.Generator], options: settings.Masks) -> Tensor:
    """Hide blocks of each picture (equation 3), by its own generator.

    Args:
        images: (batch, 3, height, width).
        color: of hidden pixels, (3,).
        generators: one a picture, on the CPU.
        options: side of the blocks, and share that is hidden on average.
    """
    size = images.shape[2:]
    rows, columns = (max(1, round(side / options.block)) for side in size)
    draws = [torch.rand(1, rows, columns, generator=one, dtype=torch.float64) for one in generators]
    kept = (torch.stack(draws) > options.ratio).to(images.device, images.dtype, non_blocking=True)
    return torch.where(F.interpolate(kept, size, mode="nearest") > 0, images, color.to(images)[:, None, None])
