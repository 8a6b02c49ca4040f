"""The time and the memory of repeated work: on a GPU by its own clock (events), on a CPU by the host's."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.sizes import Sizes


def present_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """What one repetition of a work takes: the median in seconds, and the highest memory in bytes (GPU; else 0)."""

    seconds: float
    peak_bytes: int

    def columns(self) -> dict[str, str | float]:
        """Return it as columns of a row."""
        memory = {"peak GB": round(self.peak_bytes / 1e9, 2)} if self.peak_bytes else {}
        return {"ms": round(1e3 * self.seconds, 3), **memory}


def cost_of(work: Callable[[], object], device: torch.device, sizes: Sizes) -> Cost:
    """Repeat a work, some times untimed first, and return what a repetition costs."""
    for _ in range(sizes.warm_up):
        work()
    if device.type != "cuda":
        return Cost(statistics.median(_seconds(work) for _ in range(sizes.steps)), 0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(sizes.steps + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    # Between marks, not around each work: where the host is the slower one, its time shows as it does in a training.
    spans = [one.elapsed_time(other) / 1e3 for one, other in itertools.pairwise(marks)]
    return Cost(statistics.median(spans), torch.cuda.max_memory_allocated())


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
