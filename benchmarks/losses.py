"""Losses of a step: AdvEnt's from the network's small logits to their gradients, time and peak memory.

The network is one that gives fixed logits at an 8th of GTA5's and Cityscapes' sizes in training, whose gradients are
all that is asked for: what is measured is upsampling, cross-entropy and entropies at two levels, forward and backward.
Discriminators are as published but begin with one channel, so that their convolutions do not hide the rest.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from benchmarks.both_steps import BothSteps
from benchmarks.measure import Row, compared, peak_bytes, processor_seconds, require_close, timed
from benchmarks.own_step import CLASSES, OwnStep, micro_batch
from benchmarks.plain_step import Logits, PlainStep, discriminators
from benchmarks.step_counts import Workload
from esl_dist.adaptation.methods.advent import DISCRIMINATORS
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.data.images import Size
from esl_dist.models.deeplab import feature_size
from esl_dist.training.optimisation import Updating

LEVELS = ("main", "auxiliary")
BOUND = 1e-9
"""Of a tensor's gradient in float64, as a share of its largest value."""

RATES = {SEGMENTATION: 1e4, DISCRIMINATORS: 1.0}
"""Of gradient descent: a step of it is far larger than the last place of what it changes."""

MEGABYTE = 1e6


class GivenLogits(nn.Module):
    """In place of a network: parameters are the logits of each domain and level; a picture's height says its domain."""

    def __init__(self, source: Size, target: Size) -> None:
        """Draw logits for pictures of these sizes."""
        super().__init__()
        for width, height in (source, target):
            for level in LEVELS:
                logits = 3 * torch.randn(1, len(CLASSES), feature_size(height), feature_size(width))
                self.register_parameter(f"{level}_{height}", nn.Parameter(logits))

    def forward(self, images: Tensor, domain: str = "") -> Logits:
        """Return the logits for pictures that are as high."""
        return {level: self.get_parameter(f"{level}_{images.shape[2]}") for level in LEVELS}


def rows(quick: bool) -> list[Row]:
    """Measure time and memory."""
    source, target, times = ((160, 96), (128, 64), 1) if quick else ((1280, 720), (1024, 512), 5)
    require_equal_gradients(sides(source, target, torch.float64))
    both = sides(source, target, torch.float32)
    name = f"losses of a step, {source[0]}×{source[1]} and {target[0]}×{target[1]}"
    time = timed(f"{name}: time", processor_seconds(both.ours), processor_seconds(both.plain), times, goal=1.2)
    peaks = peak_bytes(both.ours) / MEGABYTE, peak_bytes(both.plain) / MEGABYTE
    return [time, compared(f"{name}: peak memory", peaks, "MB", goal=1.5)]


def sides(source: Size, target: Size, dtype: torch.dtype) -> BothSteps:
    """Return both sides for pictures of these sizes."""
    torch.manual_seed(0)
    given, of_levels = GivenLogits(source, target), discriminators(len(CLASSES), 1)
    networks = nn.ModuleDict({SEGMENTATION: given, DISCRIMINATORS: of_levels}).to(dtype)
    copies = deepcopy(networks)
    workload = Workload(source=source, target=target)
    batch = micro_batch(workload, range(1), dtype)
    own = OwnStep(networks, Updating(networks, descent(networks), None), batch, workload.options())
    return BothSteps(own, PlainStep(copies, [*descent(copies).values()]))


def descent(networks: nn.ModuleDict) -> dict[str, Optimizer]:
    """Return an optimiser without momentum for each network."""
    return {name: SGD(networks[name].parameters(), lr=rate) for name, rate in RATES.items()}


def require_equal_gradients(both: BothSteps) -> None:
    """Take a step on each side, from the same weights, and compare what it changes.

    Raises:
        UnequalError: the changes differ.
    """
    require_close("gradients of the losses", *both.changes(1), BOUND)
