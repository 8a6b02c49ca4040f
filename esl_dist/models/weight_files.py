"""Files of weights, .safetensors and .pth: read without executing anything, checked, written whole or not at all.

Whatever a file holds, a network is filled with finite numbers that it can compute with (`refuse_tensors`): tensors that
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
from esl_dist.files import shortened, whole_file

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("state_dict", "model")
"""Names under which other programs put a network's state dict; the first there is goes before others."""
DEEPEST = 3
"""How many such names may lie one inside the other."""

LONGEST_HEADER = 100_000_000
"""Bytes; safetensors reads no longer ones."""

COUNTER = "num_batches_tracked"
VARIANCES = ("running_var", "source_var")
NAMES_OF_WEIGHTS = ("weight", "bias", "running_mean", COUNTER, *VARIANCES)
"""Last parts of names that are those of a network's numbers, whosever it is."""
DESCRIPTION = "esl_dist"
"""Key of the only entry of a safetensors header's metadata: several would be written in an order of chance."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        tensors: a state dict.
        description: what the file says about its network, as it was handed to `write_weights`; None: nothing.
        wrapper: name under which the state dict was found, such as `model.state_dict`; None where the file is one.
    """

    tensors: dict[str, Tensor]
    description: str | None = None
    wrapper: str | None = None


def read_weights(path: Path) -> WeightsFile:
    """Read a state dict from a file of safetensors or torch's, whatever its name is; nothing in it is executed.

    Raises:
        UserError: the file is missing, damaged, holds more than tensors, or tensors that no network has
            (`refuse_tensors`; indices and single numbers under other names than weights are let through, for other
            programs keep such beside them).
    """
    try:
        file = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
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
    refuse_tensors({name: one for name, one in file.tensors.items() if not is_beside_weights(name, one)}, str(path))
    return file


def is_beside_weights(name: str, tensor: Tensor) -> bool:
    """Say whether a tensor may be what other programs keep beside weights: indices, flags, a single number."""
    if name.rpartition(".")[2] in NAMES_OF_WEIGHTS or problem_of_storage(tensor) is not None:
        return False
    return tensor.ndim == 0 or not (tensor.is_floating_point() or tensor.is_complex())


def _is_safetensors(path: Path) -> bool:
    """Tell by its first bytes whether a file is one of safetensors; by its name where they are of no kind."""
    with open(path, "rb") as file:
        first = file.read(9)
    # Before torch's: the length of a header may begin as their files do.
    if first[8:] == b"{" and int.from_bytes(first[:8], "little") <= LONGEST_HEADER:
        return True
    if first.startswith((b"PK", b"\x80")):
        return False
    if first.lstrip().startswith((b"{", b"[")):
        raise UserError(f"{path}: is JSON, not a file of weights; choose the .safetensors or .pth that it belongs to")
    return path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> WeightsFile:
    with safe_open(path, "pt") as opened:
        names, metadata = opened.keys(), opened.metadata() or {}
        return WeightsFile({name: opened.get_tensor(name) for name in names}, metadata.get(DESCRIPTION))


def _read_torch(path: Path) -> WeightsFile:
    # Opened here, for of a path torch goes by the name.
    with warnings.catch_warnings(), open(path, "rb") as file:
        # Of tensors of such kinds, which are refused by name.
        warnings.simplefilter("ignore", UserWarning)
        return _unwrapped(torch.load(file, map_location="cpu", weights_only=True), path)


def _unwrapped(content: Any, path: Path) -> WeightsFile:
    wrappers: list[str] = []
    while not _is_state_dict(content):
        entries = content if isinstance(content, dict) else {}
        found = [name for name, value in entries.items() if _is_state_dict(value)]
        # Below other names there may be the states of an optimiser, which look like state dicts.
        known = [name for name in WRAPPERS if (name in found if found else isinstance(entries.get(name), dict))]
        inner = known or (found if len(found) == 1 else [])
        if not inner or len(wrappers) == DEEPEST:
            place = f"below {shortened('.'.join(wrappers))} there" if wrappers else "there"
            kind = f"a mapping of {shortened(list(entries))}" if content is entries else f"a {type(content).__name__}"
            raise UserError(
                f"{path}: expected a state dict, names → tensors, or one of them below {' or '.join(WRAPPERS)}; "
                f"{place} is {f'more than one: {shortened(found)}' if found else kind}"
            )
        wrappers.append(str(inner[0]))
        content = content[inner[0]]
    return WeightsFile(dict(content), wrapper=".".join(wrappers) or None)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


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
        if path.suffix.lower() == ".pth":
            # Not to the file: of a full disk, torch.save says no more than that a position is another.
            content = BytesIO()
            torch.save(plain, content)
            file.write(content.getbuffer())
        else:
            file.write(save(plain, None if description is None else {DESCRIPTION: description}))
