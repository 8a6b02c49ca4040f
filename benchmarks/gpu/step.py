"""(e) Milliseconds, memory and arithmetic a second of AdvEnt's step: the plain published one, ours, ours with a change.

That they are the same step is checked first, in float64 at a small size: the weights after two steps.
"""

import contextlib
import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks import plain_step
from benchmarks.gpu.candidates import CANDIDATES, COMPILED, patched
from benchmarks.gpu.conditions import PRECISIONS, UNCHANGED, Change, Conditions, build, pictures_of
from benchmarks.gpu.difference import largest_difference
from benchmarks.gpu.machine import product
from benchmarks.gpu.sizes import Row, Rows, Sizes
from benchmarks.gpu.timing import Cost, cost_of
from benchmarks.own_step import tensors_of, weights_of
from benchmarks.plain_step import PlainStep
from benchmarks.step_counts import Workload, count_step
from esl_dist.errors import UserError
from esl_dist.ranks.precision import convolutions

DEFAULTS = "plain, torch's defaults"
"""The row that all others are held against."""

PLAIN_FLAGS: dict[str, dict[str, bool]] = {
    DEFAULTS: {},
    "plain, cudnn.benchmark": {"benchmark": True},
    "plain, no TF32": {"allow_tf32": False},
}
EQUAL = 1e-9
"""Of weights after two steps in float64, relative to the largest of a tensor."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield the equality, then the costs, those that may not work last."""
    yield equality(sizes.small, device)
    ceiling = float(product("bf16", torch.bfloat16, False, sizes, device)["TFLOP/s"])
    by_pictures = {pictures: _Rows(sizes, device, pictures, ceiling) for pictures in sizes.pictures}
    for rows in by_pictures.values():
        for name, flags in PLAIN_FLAGS.items():
            yield rows.plain(name, flags)
        yield rows.plain("plain, bf16", {}, "bf16")
        for precision in PRECISIONS:
            yield rows.own(f"ours, {precision}", precision)
        for name, change in CANDIDATES.items():
            yield rows.own(f"ours, bf16, {name}", "bf16", change)
    rows = by_pictures[sizes.pictures[0]]
    if device.type == "cuda":
        yield rows.own("ours, bf16, compiled", "bf16", COMPILED)
    # Last, for a capture that fails may leave the device unusable.
    yield rows.graph()


def equality(workload: Workload, device: torch.device) -> Row:
    """Return how far the weights of both steps are apart after two steps from the same ones.

    Raises:
        AssertionError: further than rounding in float64.
    """
    given = Conditions(device, pictures=2, dtype=torch.float64)
    own, plain = build(workload, given), plain_of(workload, given)
    plain.networks.load_state_dict(own.networks.state_dict())
    for _ in range(2):
        own()
        plain(*tensors_of(own.batch))
    largest = largest_difference(weights_of(own.networks), weights_of(plain.networks))
    assert largest < EQUAL, f"ours and the plain step part by {largest:.1e}: they are not the same step"
    return {"what": "weights after two steps, ours against plain, float64", "largest relative difference": largest}


def plain_of(workload: Workload, given: Conditions) -> PlainStep:
    """Return the published step in float32, under autocast in bfloat16, or in float64 throughout."""
    half = given.precision == "bf16"
    plain = plain_step.build(workload.architecture, workload.classes, workload.channels, half)
    plain.networks.to(given.device, given.dtype)
    return plain


class _Rows:
    """Makes rows of steps with so many pictures of each domain."""

    def __init__(self, sizes: Sizes, device: torch.device, pictures: int, ceiling: float) -> None:
        self._sizes, self._device, self._pictures, self._ceiling = sizes, device, pictures, ceiling
        self._plain = 0.0
        self._flops = sum(one.flops for one in count_step(sizes.workload, pictures).all_operations())

    def plain(self, name: str, flags: dict[str, bool], precision: str = "fp32") -> Row:
        """Time the plain step under flags of cuDNN."""

        def cost() -> Cost:
            given = Conditions(self._device, precision, self._pictures)
            pictures = tensors_of(pictures_of(self._sizes.workload, given))
            step = partial(plain_of(self._sizes.workload, given), *pictures)
            return cost_of(step, self._device, self._sizes)

        with contextlib.ExitStack() as stack:
            for flag, value in flags.items():
                stack.enter_context(patched(torch.backends.cudnn, flag, value))
            return self._row(name, cost)

    def own(self, name: str, precision: str, change: Change = UNCHANGED) -> Row:
        """Time ours in a precision, with a change."""

        def cost() -> Cost:
            with convolutions(precision), change.around():
                step = build(self._sizes.workload, Conditions(self._device, precision, self._pictures), change)
                return cost_of(step, self._device, self._sizes)

        return self._row(name, cost)

    def graph(self) -> Row:
        """Time the whole step as one CUDA graph, if it can be captured."""

        def cost() -> Cost:
            # Of the row before: its compiled functions keep memory.
            torch.compiler.reset()  # type: ignore[no-untyped-call, unused-ignore]
            with convolutions("bf16"):
                step = build(self._sizes.workload, Conditions(self._device, "bf16", self._pictures), _CAPTURABLE)
                torch.cuda.reset_peak_memory_stats()
                aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                # Weights and pictures are still being made on the present one.
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    for _ in range(self._sizes.warm_up):
                        step()
                torch.cuda.synchronize()
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured, stream=aside):
                    step()
                # A replay allocates nothing: its memory was taken when it was captured.
                peak = torch.cuda.max_memory_allocated()
                return replace(cost_of(captured.replay, self._device, self._sizes), peak_bytes=peak)

        if self._device.type != "cuda":
            return {"what": f"batch {self._pictures}: ours, bf16, one CUDA graph", "words": "needs a GPU"}
        return self._row("ours, bf16, one CUDA graph", cost)

    def _row(self, name: str, cost: Callable[[], Cost]) -> Row:
        what = f"batch {self._pictures}: {name}"
        try:
            found = cost()
        except (RuntimeError, UserError) as error:
            # Out of memory, or what cannot be captured: it costs this row alone.
            return {"what": what, "words": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
        finally:
            if self._device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        if name == DEFAULTS:
            self._plain = found.seconds
        rate = self._flops / found.seconds / 1e12
        return {
            "what": what,
            **found.columns(),
            "times plain": round(self._plain / found.seconds, 2) if self._plain else "unknown",
            "TFLOP/s": round(rate, 2),
            "of the bf16 product": f"{100 * rate / self._ceiling:.1f} %",
        }


def _make_capturable(optimizers: dict[str, torch.optim.Optimizer]) -> None:
    for group in optimizers["discriminators"].param_groups:
        group["capturable"] = True


_CAPTURABLE = Change(optimizers=_make_capturable)
