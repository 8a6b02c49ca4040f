"""(c) One step on the CPU and on this device in every precision; a forced overflow; ten steps, and five and five."""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.gpu.conditions import Conditions, build
from benchmarks.gpu.sizes import Row, Rows, Sizes
from benchmarks.own_step import OwnStep, weights_of
from benchmarks.step_counts import Workload
from esl_dist.ranks.precision import convolutions

OVERFLOWING_SCALE = 2.0**30
"""Of losses in float16, whose largest number is 2¹⁶: gradients that cross a convolution are infinite."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield how far results are from those of the CPU in float64, and what is the same to the bit."""
    yield from against_float64(sizes.small, device)
    yield from overflow(sizes.small, device)
    for precision in ("fp32", "bf16"):
        yield ten_steps(sizes.small, Conditions(device, precision))


def against_float64(workload: Workload, device: torch.device) -> Rows:
    """Yield the difference of losses and gradients from those in float64, by processor and precision."""
    exact = _gradients(workload, Conditions(torch.device("cpu"), dtype=torch.float64))
    host = torch.device("cpu")
    places = [(host, "fp32"), (host, "bf16")]
    if device.type == "cuda":
        places += [(device, precision) for precision in ("fp64", "fp32", "tf32", "bf16", "fp16")]
    for place, precision in places:
        dtype = torch.float64 if precision == "fp64" else torch.float32
        found = _gradients(workload, Conditions(place, precision, dtype=dtype))
        yield {"what": f"a step, {place.type} {precision} against cpu fp64", **_apart(found, exact)}


def _gradients(workload: Workload, given: Conditions) -> dict[str, Tensor]:
    """Return the gradients of a first step by network, flat, and the losses, in float64 on the CPU."""
    with convolutions(given.precision):
        step = build(workload, given)
        step.updating.begin_step()
        losses = step.losses()
    # The loss scale is a power of two, so dividing by it is exact.
    scale = float(step.updating.states()["scaler"].get("scale", 1.0))
    found = {
        f"gradients of {name}": torch.cat(
            [
                one.grad.detach().to("cpu", torch.float64).flatten()
                for one in network.parameters()
                if one.grad is not None
            ]
        )
        / scale
        for name, network in step.networks.items()
    }
    return {"losses": torch.stack([loss.detach().to("cpu", torch.float64) for loss in losses.values()]), **found}


def _apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> Row:
    """Return |a − b| / |b| of each, by Euclidean length."""
    return {name: float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact}


def overflow(workload: Workload, device: torch.device) -> Iterator[Row]:
    """Yield whether a step in float16 whose gradients overflow leaves everything as it was, and the next ones learn."""
    if device.type != "cuda":
        yield {"what": "fp16 with a forced overflow", "words": "needs a GPU"}
        return
    step = build(workload, Conditions(device, "fp16", scale=OVERFLOWING_SCALE))
    before, skipped = weights_of(step.networks), 0
    with convolutions("fp16"):
        while not step():
            skipped += 1
            unchanged = all(torch.equal(tensor, before[name]) for name, tensor in weights_of(step.networks).items())
            if not unchanged or skipped > math.log2(OVERFLOWING_SCALE):
                break
    after = weights_of(step.networks)
    yield {
        "what": "fp16 with a forced overflow",
        "steps skipped": skipped,
        "unchanged by them": "yes" if skipped and unchanged else "NO",
        "then finite": "yes" if all(bool(tensor.isfinite().all()) for tensor in after.values()) else "NO",
        "then learned": "yes" if any(not torch.equal(after[name], before[name]) for name in before) else "NO",
    }


def ten_steps(workload: Workload, given: Conditions) -> Row:
    """Return whether ten steps leave the bits of five, a stop and five more from what a checkpoint holds."""
    with convolutions(given.precision):
        whole = _after(build(workload, given), 10)
        first = build(workload, given)
        _after(first, 5)
        kept = deepcopy((first.networks.state_dict(), first.updating.states()))
        second = build(workload, given)
        second.networks.load_state_dict(kept[0])
        second.updating.load(kept[1])
        parted = _after(second, 5)
    largest = max(float((parted[name] - whole[name]).abs().max()) for name in whole)
    equal = all(torch.equal(parted[name], whole[name]) for name in whole)
    return {
        "what": f"ten steps against five and five, {given.device.type} {given.precision}",
        "the same bits": "yes" if equal else "NO",
        "largest difference": largest,
    }


def _after(step: OwnStep, steps: int) -> dict[str, Tensor]:
    for _ in range(steps):
        step()
    return weights_of(step.networks)
