"""A whole AdvEnt step, forward, backward and update: ours beside the published one, in float32 and in bfloat16.

The network is ResNet-50 of two levels on pictures of a quarter of the published side, so that two processor cores bear
it. That both compute the same is shown in float64; in bfloat16, which keeps 8 bits, the changes of one step may part by
`HALF_BOUND`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from benchmarks import own_step, plain_step
from benchmarks.both_steps import BothSteps
from benchmarks.measure import Row, UnequalError, processor_seconds, require_close, timed
from benchmarks.step_counts import Workload
from esl_dist.adaptation.passes import SEGMENTATION

BOUND = 1e-9
"""Of what steps add to a tensor in float64, as a share of its largest value."""

HALF_BOUND = 0.1
"""The same in bfloat16, of the norm of all that a step adds to a network."""


FULL = Workload("resnet50", source=(320, 180), target=(256, 128))
CHECKED = Workload("resnet50", source=(160, 90), target=(128, 64))
"""In float64, of which a step takes twice as long."""
QUICK = Workload("tiny", source=(96, 64), target=(64, 64), channels=2)


def rows(quick: bool) -> list[Row]:
    """Measure both precisions."""
    case, checked, times = (QUICK, QUICK, 1) if quick else (FULL, CHECKED, 5)
    # Two, for momentum has no say in the first.
    require_close("two steps in float64", *sides(checked, dtype=torch.float64).changes(2), BOUND)
    found = []
    for name, half in (("float32", False), ("bfloat16", True)):
        both = sides(case, half)
        if half:
            require_near(*both.changes(1))
        title = f"whole step, {case.architecture}, {case.source[0]}×{case.source[1]}, {name}"
        found.append(timed(title, processor_seconds(both.ours), processor_seconds(both.plain), times, goal=1.0))
    return found


def sides(case: Workload, half: bool = False, dtype: torch.dtype = torch.float32) -> BothSteps:
    """Return both sides; with `half`, under autocast in bfloat16."""
    own = own_step.build(case, range(1), dtype, autocast(half))
    plain = plain_step.build(case.architecture, case.classes, case.channels, half)
    plain.networks.to(dtype).load_state_dict(own.networks.state_dict())
    return BothSteps(own, plain)


def autocast(half: bool) -> Callable[[], AbstractContextManager[None]]:
    """Return the context that a training on the CPU has in bfloat16, or in float32."""
    return partial(torch.autocast, "cpu", torch.bfloat16) if half else nullcontext


def require_near(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """Make sure that what a step in bfloat16 adds to the network's weights is nearly the same as a whole.

    Adam's first step is one of signs, which rounding turns over: discriminators are compared in float64 alone.

    Raises:
        UnequalError: it is not.
    """
    names = [name for name in plain if name.startswith(SEGMENTATION) and "running" not in name]
    apart, whole = (
        torch.cat([tensor.flatten() for tensor in tensors]).norm()
        for tensors in ([ours[name] - plain[name] for name in names], [plain[name] for name in names])
    )
    share = float(apart / whole)
    if not share <= HALF_BOUND:
        raise UnequalError(f"a step in bfloat16: {share:.2g} of what it adds differs, more than {HALF_BOUND:g}")
