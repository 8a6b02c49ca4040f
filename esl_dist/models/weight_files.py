"""Files of weights, .safetensors and .pth: read without executing anything, checked, written whole or not at all.

Whatever a file holds, what comes out of `read_weights` are finite numbers that a network can compute with: tensors that
are no numbers, or none of a network's, would give predictions that look like any other.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from esl_dist.errors import UserError
from esl_dist.files import whole_file

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("state_dict", "model")
"""Names under which other programs put a network's state dict; the first there is goes before others."""

COUNTER = "num_batches_tracked"
VARIANCES = ("running_var", "source_var")
DESCRIPTION = "esl_dist"
"""Key of the only entry of a safetensors header's metadata: several would be written in an order of chance."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        tensors: a state dict.
        description: what the file says about its network, as it was handed to `write_weights`; None: nothing.
        wrapper: name under which the state dict was found; None where the file is one.
    """

    tensors: dict[str, Tensor]
    description: str | None = None
    wrapper: str | None = None


def read_weights(path: Path) -> WeightsFile:
    """Read a state dict from .safetensors or .pth; nothing in it is executed.

    Raises:
        UserError: the file is missing, damaged, holds more than tensors, or tensors that no network has
            (`refuse_tensors`).
    """
    try:
        file = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except UserError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        # Torch's own advice on archives follows after the first sentence.
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or "it ends too early"
        raise UserError(
            f"{path}: cannot be read as weights: {reason}; it may be damaged or cut short: copy it again"
        ) from error
    except Exception as error:  # torch wraps what its restricted unpickler refuses in pickle's exceptions
        raise UserError(
            f"{path}: refused: it is damaged or holds more than tensors ({type(error).__name__})"
        ) from error
    refuse_tensors(file.tensors, str(path))
    return file


def _read_safetensors(path: Path) -> WeightsFile:
    with safe_open(path, "pt") as opened:
        names, metadata = opened.keys(), opened.metadata() or {}
        return WeightsFile({name: opened.get_tensor(name) for name in names}, metadata.get(DESCRIPTION))


def _read_torch(path: Path) -> WeightsFile:
    with warnings.catch_warnings():
        # Of tensors of such kinds, which are refused by name.
        warnings.simplefilter("ignore", UserWarning)
        content = torch.load(path, map_location="cpu", weights_only=True)
    if _is_state_dict(content):
        return WeightsFile(dict(content))
    found = [name for name, value in content.items() if _is_state_dict(value)] if isinstance(content, dict) else []
    known = [name for name in WRAPPERS if name in found]
    if not known and len(found) != 1:
        several = f", found {len(found)} of them: {', '.join(map(str, found))}" if found else ""
        raise UserError(
            f"{path}: expected a state dict, names → tensors, or one of them below {' or '.join(WRAPPERS)}{several}"
        )
    wrapper = (known or found)[0]
    return WeightsFile(dict(content[wrapper]), wrapper=str(wrapper))


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def refuse_tensors(state: Mapping[str, Tensor], origin: str) -> None:
    """Make sure that a network can compute with all tensors of a state dict.

    Raises:
        UserError: a tensor without numbers (empty, meta), of no plain layout or type (sparse, quantised, complex,
            integer, of 8 bits), a single number, or numbers that are not finite in float32, or a variance below 0; a
            batch norm's counter alone is a whole number. The message starts with `origin` and names the tensor.
    """
    for name, tensor in state.items():
        if (problem := _problem_of_counter(tensor) if name.endswith(COUNTER) else _problem(name, tensor)) is not None:
            raise UserError(f"{origin}: tensor {name} {problem}; no network can be filled with it")


def _problem_of_storage(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "is quantised"
    if tensor.layout != torch.strided:
        return "is sparse"
    return "is on the device meta, so it has no numbers" if tensor.is_meta else None


def _problem_of_counter(tensor: Tensor) -> str | None:
    if (problem := _problem_of_storage(tensor)) is not None:
        return problem
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool or tensor.numel() != 1:
        return f"of type {_type(tensor)} and shape {list(tensor.shape)} is not one whole number"
    return None


def _problem(name: str, tensor: Tensor) -> str | None:
    if (problem := _problem_of_storage(tensor)) is not None:
        return problem
    if tensor.dtype not in FLOATS:
        return f"is of type {_type(tensor)}, not one of {', '.join(map(str, FLOATS)).replace('torch.', '')}"
    if tensor.ndim == 0 or tensor.numel() == 0:
        return f"has shape {list(tensor.shape)}, so it is no weight"
    # In the type of networks: a larger number of 64 bits is infinite there.
    values = tensor.float()
    if not values.isfinite().all():
        return "holds numbers that are not finite"
    return "holds a variance below 0" if name.endswith(VARIANCES) and bool((values < 0).any()) else None


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def digest_of_weights(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names and values: equal means the same weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        # As bytes, for numpy does not have every type of torch's.
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()


def write_weights(path: Path, state: Mapping[str, Tensor], description: str | None = None) -> None:
    """Write a state dict as .safetensors or, for the published programs, as .pth; whole or not at all.

    `description` goes along with .safetensors; .pth has no place for it.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(path) as file:
        if path.suffix == ".pth":
            # Not to the file: of a full disk, torch.save says no more than that a position is another.
            content = BytesIO()
            torch.save(plain, content)
            file.write(content.getbuffer())
        else:
            file.write(save(plain, None if description is None else {DESCRIPTION: description}))
