"""Files of weights, .safetensors and .pth: read without executing anything, checked, written whole or not at all.

Whatever a file holds, a network is filled with numbers that it can compute with (`sound_tensors`).
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
from esl_dist.models.sound_tensors import is_beside_weights, refuse_tensors

WRAPPERS = ("state_dict", "model")
"""Names under which other programs put a network's state dict; the first there is goes before others."""
DEEPEST = 3
"""How many such names may lie one inside the other."""

LONGEST_HEADER = 100_000_000
"""Bytes; safetensors reads no longer ones."""

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
