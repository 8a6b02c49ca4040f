"""Changes to the step that may make it faster or smaller, each alone: applied from outside, and taken back.

What the project does already is here in both directions, so that its worth shows whichever is the default.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.gpu.conditions import Change
from esl_dist.adaptation import passes
from esl_dist.adaptation.methods.advent import DISCRIMINATORS
from esl_dist.models.deeplab import checkpoint_blocks
from esl_dist.training.compilation import compile_networks


@contextlib.contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    """Put something in the place of what `owner` has under a name that it must have."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def in_layout(layout: torch.memory_format) -> Change:
    """Return a change of the layout of weights and pictures."""

    def lay_out(networks: nn.ModuleDict) -> None:
        for parameter in networks.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)

    return Change(networks=lay_out, layout=layout)


def updated_by(kind: str) -> Change:
    """Return optimisers of one kind: fused or foreach."""

    def choose(optimizers: dict[str, Optimizer]) -> None:
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group.update(fused=kind == "fused", foreach=kind == "foreach")

    return Change(optimizers=choose)


def discriminators_in(half: bool) -> Change:
    """Return discriminators whose passes are in bfloat16, or in float32; their words are float32."""

    def wrap(networks: nn.ModuleDict) -> None:
        by_level = networks[DISCRIMINATORS]
        assert isinstance(by_level, nn.ModuleDict)
        for one in by_level.values():
            one.forward = partial(_in_precision, one.forward, half)

    return Change(networks=wrap)


def _in_precision(forward: Callable[[Tensor], Tensor], half: bool, maps: Tensor) -> Tensor:
    with torch.autocast(maps.device.type, torch.bfloat16, enabled=half):
        return forward(maps).float()


def upsampled_by_torch(scores: Tensor, size: torch.Size) -> Tensor:
    """Resize as torch does, whose backward pass adds atomically on a GPU."""
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=True)


def upsampled_by_products(scores: Tensor, size: torch.Size) -> Tensor:
    """Resize by two matrix products, whose backward passes are products, too."""
    rows, columns = (
        _interpolation(short, long, scores.device, scores.dtype)
        for short, long in zip(scores.shape[2:], size, strict=True)
    )
    return rows @ scores @ columns.T


@cache
def _interpolation(short: int, long: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    units = torch.eye(short, dtype=torch.float64)[None, None]
    matrix = F.interpolate(units, size=(long, short), mode="bilinear", align_corners=True)
    return matrix[0, 0].to(device, dtype)


def compile_all(networks: nn.ModuleDict) -> None:
    """Have passes compiled, as the setting `compile` does."""
    compile_networks(networks)


def _flag(name: str, value: bool) -> Callable[[], Any]:
    return lambda: patched(torch.backends.cudnn, name, value)


CANDIDATES = {
    "channels_last": in_layout(torch.channels_last),
    "contiguous (NCHW)": in_layout(torch.contiguous_format),
    "cudnn.benchmark": Change(around=_flag("benchmark", True)),
    "cudnn not deterministic": Change(around=_flag("deterministic", False)),
    "fused optimisers": updated_by("fused"),
    "foreach optimisers": updated_by("foreach"),
    "discriminators in bf16": discriminators_in(half=True),
    "discriminators in fp32": discriminators_in(half=False),
    "upsampling by F.interpolate": Change(around=lambda: patched(passes, "upsample", upsampled_by_torch)),
    "upsampling by products": Change(around=lambda: patched(passes, "upsample", upsampled_by_products)),
    "blocks computed anew": Change(networks=checkpoint_blocks),
}
"""By name; compiling is apart, for it takes a minute."""

COMPILED = Change(networks=compile_all)
