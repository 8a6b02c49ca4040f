"""(d) Where the host waits for the GPU in a full-size step, and what its time goes to: a profile of three steps."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.conditions import Conditions, build
from benchmarks.gpu.sizes import Row, Rows, Sizes
from esl_dist.ranks.precision import convolutions

PRECISION, PROFILED, SHOWN = "bf16", 3, 15
"""Steps that are profiled, and kernels that are shown."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield the waits of a step by the line that caused them, and the kernels by their time."""
    with convolutions(PRECISION):
        step = build(sizes.workload, Conditions(device, PRECISION))
        for _ in range(sizes.warm_up):
            step()
        yield from waits_of(step, device)
        yield from profile_of(step, device)


def waits_of(step: Callable[[], object], device: torch.device) -> Rows:
    """Yield how often the host waited in one step, in all and by line."""
    if device.type != "cuda":
        yield {"what": "waits of the host in a step", "words": "needs a GPU; on the CPU a test counts operations"}
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchroniz" in str(one.message)]
    yield {"what": "waits of the host in a step", "number": len(waits)}
    lines = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in waits)
    for line, count in lines.most_common(SHOWN):
        yield {"what": f"waits at {line}", "number": count}


def profile_of(step: Callable[[], object], device: torch.device) -> Rows:
    """Yield how much of the time the device is busy, and its most expensive kernels (on a CPU: operations)."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        begin = time.perf_counter()
        for _ in range(PROFILED):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    # Annotations are spans around kernels that are in the list themselves.
    kernels = [
        one
        for one in profiled.key_averages()
        if (one.device_type.name == "CUDA") == on_gpu and not one.is_user_annotation
    ]
    busy = sum(_microseconds(one, on_gpu) for one in kernels) / 1e6
    yield {
        "what": "three steps under the profiler",
        "ms a step": round(1e3 * seconds / PROFILED, 2),
        "kernels a step": sum(one.count for one in kernels) / PROFILED,
        "device busy": f"{100 * busy / seconds:.0f} %",
    }
    for one in sorted(kernels, key=lambda kernel: -_microseconds(kernel, on_gpu))[:SHOWN]:
        yield _kernel_row(one, _microseconds(one, on_gpu), busy)


def _kernel_row(kernel: Any, microseconds: float, busy: float) -> Row:
    return {
        "what": str(kernel.key)[:100],
        "ms a step": round(microseconds / 1e3 / PROFILED, 3),
        "calls a step": kernel.count / PROFILED,
        "share": f"{100 * microseconds / 1e6 / max(busy, 1e-12):.1f} %",
    }


def _microseconds(kernel: Any, on_gpu: bool) -> float:
    return float(kernel.self_device_time_total if on_gpu else kernel.self_cpu_time_total)
