"""Changes to the step, each alone: applied from outside, and taken back.

Some may make it faster or smaller; the others undo what the project does on a GPU, so that its worth shows.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.gpu.conditions import Change
from esl_dist.adaptation import passes
from esl_dist.adaptation.methods.advent import DISCRIMINATORS
from esl_dist.models.segmentation import checkpoint_blocks
from esl_dist.training.compilation import compile_segmentation


@contextlib.contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    """Put something in the place of what `owner` has under a name that it must have."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def lay_out_by_channel(networks: nn.ModuleDict) -> None:
    """Have the weights of convolutions contiguous."""
    for parameter in networks.parameters():
        parameter.data = parameter.data.contiguous()


def update_by_lists(optimizers: dict[str, Optimizer]) -> None:
    """Have a kernel for each operation on all weights, where the fused optimiser has one for all operations."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=True)


def compute_discriminators_in_full(networks: nn.ModuleDict) -> None:
    """Leave the passes of discriminators out of the autocast that they are called in."""
    by_level = networks[DISCRIMINATORS]
    assert isinstance(by_level, nn.ModuleDict)
    for one in by_level.values():
        one.forward = partial(_without_autocast, one.forward)


def _without_autocast(forward: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    with torch.autocast(maps.device.type, enabled=False):
        return forward(maps)


def upsample_by_torch(scores: Tensor, size: torch.Size) -> Tensor:
    """Resize as torch does, whose backward pass adds atomically on a GPU."""
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=True)


def compile_all(networks: nn.ModuleDict) -> None:
    """Have passes compiled, as the setting `compile` does."""
    compile_segmentation(networks)


def _flag(name: str, value: bool) -> Callable[[], Any]:
    return lambda: patched(torch.backends.cudnn, name, value)


CANDIDATES = {
    "contiguous (NCHW)": Change(networks=lay_out_by_channel, layout=torch.contiguous_format),
    "cudnn.benchmark": Change(around=_flag("benchmark", True)),
    "cudnn not deterministic": Change(around=_flag("deterministic", False)),
    "foreach optimisers": Change(optimizers=update_by_lists),
    "discriminators in fp32": Change(networks=compute_discriminators_in_full),
    "upsampling by F.interpolate": Change(around=lambda: patched(passes, "upsample", upsample_by_torch)),
    "blocks computed anew": Change(networks=checkpoint_blocks),
}
"""By name; compiling is apart, for it takes a minute."""

COMPILED = Change(networks=compile_all)
