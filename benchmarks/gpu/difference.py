"""How far what was computed in two ways is apart, tensor by tensor."""

import math
from collections.abc import Mapping

from torch import Tensor

TINIEST = 1e-300
"""What tensors of zeros are divided by."""


def largest_difference(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Return the largest max |a − b| / max |b| of all tensors; infinity if one of either side is not finite.

    A number that is none compares as neither larger nor smaller, so no bound would see it.

    Raises:
        KeyError: `found` lacks a tensor of `exact`.
    """
    return max(_difference(found[name], tensor) for name, tensor in exact.items())


def _difference(found: Tensor, exact: Tensor) -> float:
    found, exact = found.double(), exact.double()
    if not bool(found.isfinite().all() & exact.isfinite().all()):
        return math.inf
    return float((found - exact).abs().max() / exact.abs().max().clamp(min=TINIEST))
