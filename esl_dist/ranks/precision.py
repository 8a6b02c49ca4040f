"""Which precisions a device has, and in which numbers, by which algorithm, a GPU computes convolutions.

cuDNN rounds the factors of float32 convolutions to TF32 (10 bits of mantissa in place of 23) unless it is told not to,
as torch lets it by default; matrix products are rounded only if they are asked to. Here `precision=no` means float32
throughout, and `tf32` rounds in convolutions alone. Of several algorithms cuDNN takes one that adds in a fixed order,
chosen by a rule and not by a trial of their speed: so results do not depend on timing, which comes before speed.
(PyTorch's notes on CUDA semantics, section TF32, and on reproducibility.)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

# torch has a second set of switches for this (fp32_precision); where both were used, its compiler raises.

FIRST_WITH_TF32 = 8
"""Major compute capability: Ampere's; earlier GPUs would compute in float32 and say nothing."""


def missing(precision: str, device: torch.device) -> str | None:
    """Return why a device does not have a precision of forward passes, and which it has; None where it has it.

    Args:
        precision: no, tf32, bf16 or fp16.
        device: a processor, or a GPU of CUDA.
    """
    if device.type == "cpu":
        return None if precision in ("no", "bf16") else "needs a GPU; on CPU choose no or bf16"
    if precision == "tf32" and torch.cuda.get_device_capability(device)[0] < FIRST_WITH_TF32:
        return "is not one that this GPU has; choose no or fp16"
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "is not one that this GPU has; choose no or fp16"
    return None


@contextmanager
def convolutions(precision: str) -> Iterator[None]:
    """Have convolutions of the block, and of backward passes within it, computed so; afterwards, as before.

    Args:
        precision: of forward passes.
    """
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    try:
        _set(precision == "tf32", True, False, False)
        yield
    finally:
        _set(*before)


def _set(tf32: bool, deterministic: bool, benchmark: bool, tf32_in_products: bool) -> None:
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = tf32, deterministic, benchmark
    torch.backends.cuda.matmul.allow_tf32 = tf32_in_products
