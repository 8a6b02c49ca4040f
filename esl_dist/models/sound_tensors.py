"""Which tensors a network can be filled with: finite numbers that it can compute with.

Whoever wrote them: tensors that are no numbers, or none of a network's, would give predictions that look like any
other. It needs torch alone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from esl_dist.errors import UserError
from esl_dist.files import shortened

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"
VARIANCES = ("running_var", "source_var")
NAMES_OF_WEIGHTS = ("weight", "bias", "running_mean", COUNTER, *VARIANCES)
"""Last parts of names that are those of a network's numbers, whosever it is."""


def refuse_tensors(state: Mapping[str, Tensor], origin: str, own: Mapping[str, Tensor] | None = None) -> None:
    """Make sure that a network can compute with all tensors of a state dict.

    Args:
        state: names → tensors.
        origin: begins each message.
        own: the tensors of the network, where it is known: what is a whole or a single number there may be one here.

    Raises:
        UserError: a tensor without numbers of its own (empty, meta, several places that share one number), of no plain
            layout or type (sparse, quantised, complex, integer, of 8 bits), a single number, or numbers that are not
            finite in float32, or a variance below 0; a batch norm's counter alone is a whole number, of at least 0. The
            message names the tensor.
    """
    for name, tensor in state.items():
        if (problem := _problem(name, tensor, (own or {}).get(name))) is not None:
            raise UserError(f"{origin}: tensor {shortened(name)} {problem}; no network can be filled with it")


def _problem(name: str, tensor: Tensor, own: Tensor | None) -> str | None:
    if (problem := problem_of_storage(tensor)) is not None:
        return problem
    kind = str(tensor.dtype).removeprefix("torch.")
    if name.endswith(COUNTER):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool or tensor.numel() != 1:
            return f"of type {kind} and shape {list(tensor.shape)} is not one whole number"
        return "is below 0" if bool((tensor < 0).any()) else None
    if own is not None and own.dtype == tensor.dtype not in FLOATS:
        return None
    if tensor.dtype not in FLOATS:
        return f"is of type {kind}, not one of {', '.join(map(str, FLOATS)).replace('torch.', '')}"
    if tensor.numel() == 0 or (tensor.ndim == 0 and (own is None or own.ndim > 0)):
        return f"has shape {list(tensor.shape)}, so it is no weight"
    # In the type of networks: a larger number of 64 bits is infinite there.
    values = tensor.float()
    if not values.isfinite().all():
        return "holds numbers that are not finite"
    return "holds a variance below 0" if name.endswith(VARIANCES) and bool((values < 0).any()) else None


def problem_of_storage(tensor: Tensor) -> str | None:
    """Return why a tensor does not hold a plain number for each of its places; None: it does."""
    if tensor.is_quantized:
        return "is quantised"
    if tensor.layout != torch.strided:
        return "is sparse"
    if tensor.is_meta:
        return "is on the device meta, so it has no numbers"
    return "uses one number in several places" if _overlaps(tensor) else None


def _overlaps(tensor: Tensor) -> bool:
    """Whether places share a number: a small file may claim more than there is memory, and none can be written to."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def is_beside_weights(name: str, tensor: Tensor) -> bool:
    """Say whether a tensor may be what other programs keep beside weights: indices, flags, a single number."""
    if name.rpartition(".")[2] in NAMES_OF_WEIGHTS or problem_of_storage(tensor) is not None:
        return False
    return tensor.ndim == 0 or not (tensor.is_floating_point() or tensor.is_complex())
