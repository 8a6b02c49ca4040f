"""Bilinear resizing of a network's maps to the size of labels, with corners aligned as in the published network.

Torch's backward pass adds four products for each pixel of the gradient, on a GPU by atomic additions, whose order and
with it the last bits of the sum are others in each run. But resizing is linear and separable: with R the matrix that
resizes a column and C the one that resizes a row, Y = R·X·Cᵀ, and so dX = Rᵀ·dY·C: two matrix products.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(scores: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize (batch, channels, …, …) to `size`, height and width: bilinear, corners aligned."""
    resized: Tensor = _Resize.apply(scores, size)
    return resized


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        ctx.size = scores.shape[2:]
        return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows, columns = (_weights(*sides, gradient) for sides in zip(ctx.size, gradient.shape[2:], strict=True))
        return rows @ gradient @ columns.mT, None


def _weights(before: int, after: int, like: Tensor) -> Tensor:
    """Return what each value of a column adds to each of the resized one: (before, after), rounded as forwards."""
    unit = torch.eye(before, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size=after, mode="linear", align_corners=True)[0]
