"""Finds what would make the host wait for a GPU, on a CPU: every reading of a value that lies on "the device".

On the device is what a test says, what is sent there without waiting (`to(…, non_blocking=True)`), what is made there
(`zeros(…, device=…)`), and whatever is computed from these. To send numbers there in any other way waits as well. That
a CPU has one memory only is why this is followed and not looked up.
"""

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = (
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "unique", "_unique"),
    *("_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "_assert_async", "allclose"),
    "repeat_interleave",
)
"""Operations whose result, or its shape, the host has to know."""

BY_MASK = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""Operations that are such if they index by a mask."""

TO_HOST = ("cpu", "tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__index__", "__array__")
"""What Python calls on a tensor; on a CPU some of them are no operation, so they are heard where they are called."""

FROM_NUMBERS = ("tensor", "as_tensor", "asarray")
"""What makes a tensor of Python's numbers: on the host, from where it is sent if a device is named."""

MADE_THERE = ("empty", "zeros", "ones", "full", "arange", "linspace", "eye", "empty_strided")
"""What makes a tensor on the device that is named."""


@dataclass
class Device:
    """What lies on the device, and the places of the project that made the host wait for it."""

    waits: list[str] = field(default_factory=list)
    storages: dict[int, Any] = field(default_factory=dict)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Note that tensors lie on the device."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # The storage itself is held, so that none takes its place under the same number.
            self.storages[storage._cdata] = storage

    def has(self, value: object) -> bool:
        """Say whether a value is a tensor on the device."""
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.storages

    def waited(self, operation: str) -> None:
        """Note the place from which the operation was asked for."""
        frames = [frame for frame in traceback.extract_stack() if "/esl_dist/" in frame.filename]
        where = f"{frames[-1].filename.partition('/esl_dist/')[2]}:{frames[-1].lineno}" if frames else "a test"
        self.waits.append(f"{operation} at {where}")


class _Operations(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(self.device.has(one) for one in given):
            name = func.name().removeprefix("aten::").partition(".")[0]
            masked = name in BY_MASK and any(
                one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
            )
            to_host = name == "copy_" and not self.device.has(args[0])
            if name in READING or masked or (to_host and True not in args[2:]):
                self.device.waited(name)
            if to_host:
                return output
            self.device.add(one for one in tree_leaves(output) if isinstance(one, Tensor))
            if func._schema.is_mutable:
                self.device.add(one for one in tree_leaves(args[:1]) if isinstance(one, Tensor))
        return output


class _Calls(TorchFunctionMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        to_a_device = name == "to" and _names_a_device([*args[1:], *given.values()])
        is_method = name in (*TO_HOST, "to") and getattr(Tensor, name) is func
        if is_method and self.device.has(args[0]) and (name in TO_HOST or to_a_device):
            self.device.waited(name)
        if is_method and not self.device.has(args[0]) and to_a_device and not given.get("non_blocking"):
            self.device.waited("to, which waits until the host's memory is read")
        there = given.get("device") is not None
        if there and name in FROM_NUMBERS and not self.device.has(args[0]):
            self.device.waited(f"{name}, of numbers on the host")
        output = func(*args, **given)
        if (name == "to" and given.get("non_blocking")) or (there and name in MADE_THERE):
            self.device.add([output])
        return output


def _names_a_device(values: Iterable[object]) -> bool:
    return any(isinstance(value, (str, torch.device)) for value in values)


class NoteWaits:
    """A block in which waits are noted on `device`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.modes = _Operations(device), _Calls(device)

    def __enter__(self) -> Device:
        for mode in self.modes:
            mode.__enter__()
        return self.device

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)
