"""How much a step computes, counted once a start, and which share of what the device can that is (MFU).

Model FLOPs are those of the products of matrices and of convolutions, forward and backward, a multiplication and an
addition each (PaLM, arXiv 2204.02311, appendix B): torch's own formulas, applied to every operation of the first step.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H200": {"no": 67e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    "NVIDIA H100 80GB HBM3": {"no": 67e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    "NVIDIA H100 PCIe": {"no": 51e12, "tf32": 378e12, "bf16": 756e12, "fp16": 756e12},
    "NVIDIA A100": {"no": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12},
    "Tesla V100": {"no": 15.7e12, "fp16": 125e12},
}
"""Beginning of a device's name → FLOP/s of dense products by precision, as NVIDIA's data sheets have them (without
sparsity); the first that fits counts."""


class Work:
    """FLOPs of operations, added up.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.flops = 0

    @contextmanager
    def counted(self, is_wanted: bool) -> Iterator[None]:
        """Add what is computed in the block, if it is wanted; nothing of it is changed."""
        if not is_wanted:
            yield
            return
        from torch.utils.flop_counter import flop_registry  # for a quarter of a second

        with _Counting(self, flop_registry):
            yield


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, work: Work, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._work, self._formulas = work, formulas

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To have torch's compiler skip it, torch would import the compiler, which takes seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (count := self._formulas.get(func._overloadpacket)) is not None:
            self._work.flops += count(*args, **(kwargs or {}), out_val=output)
        return output


def peak_of(device: torch.device, precision: str) -> float | None:
    """Return a device's highest FLOP/s in a precision; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks.get(precision) for start, peaks in PEAKS.items() if name.startswith(start)), None)
