"""Two ranks beside one, on the same global batch with one thread each: `two_ranks.py` is also the rank that times.

The plain side is the project on one rank: how much faster two are says what waiting for each other costs, for the ideal
is 2 on two free cores. DistributedDataParallel is no plain side for this: it takes means of the ranks' means, leaves
batch norm to each rank alone (torch's SyncBatchNorm refuses CPU tensors), and so computes something else. That one and
two ranks learn the same is shown in float64 first.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import Measure, Row, compared, medians_in_turn, require_close
from benchmarks.own_step import OwnStep, build, weights_of
from benchmarks.programs import output_of_first_rank
from benchmarks.step_counts import Workload
from esl_dist.data.images import Size
from esl_dist.ranks.collectives import rank, world_size

ARCHITECTURE, CHANNELS, SOURCE, TARGET = "resnet18", 16, (256, 128), (256, 128)
PICTURES = 2
"""Of each domain in the global batch."""

CHECKED_SIZE, CHECKED_STEPS, BOUND = (64, 64), 2, 1e-9
"""Of the weights after so many steps in float64, as a share of each tensor's largest."""


def rows(quick: bool) -> list[Row]:
    """Measure the pictures a second of one rank and of two."""
    times, steps, architecture = (1, 1, "tiny") if quick else (3, 2, ARCHITECTURE)
    with tempfile.TemporaryDirectory() as folder:
        require_equal_weights(Path(folder))
    name = f"two ranks beside one, {architecture}, {PICTURES} pictures of {SOURCE[0]}×{SOURCE[1]}"
    sides = medians_in_turn(name, speed(architecture, steps, 2), speed(architecture, steps, 1), times)
    return [compared(name, sides, "pictures/s", goal=1.6)]


def require_equal_weights(folder: Path) -> None:
    """Train on one rank and on two, and compare.

    Raises:
        UnequalError: they have other weights or batch-norm statistics.
    """
    files = {ranks: folder / f"{ranks}.pt" for ranks in (2, 1)}
    for ranks, file in files.items():
        output_of_first_rank([__file__, "check", str(file)], ranks)
    ours, plain = (torch.load(file, weights_only=True) for file in files.values())
    require_close("two ranks and one in float64", ours, plain, BOUND)


def speed(architecture: str, steps: int, ranks: int) -> Measure:
    """Return a start of so many ranks that take so many steps, measured in pictures of both domains a second."""
    words = [__file__, "time", architecture, str(steps)]
    return lambda: 2 * PICTURES / float(json.loads(output_of_first_rank(words, ranks)))


def main(what: str, *words: str) -> None:
    """Be a rank: `check FILE` writes what is learned in float64, `time NETWORK STEPS` prints the median of a step."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    # Work of all ranks, of which the first one tells.
    if what == "check":
        weights = learned()
        if rank() == 0:
            torch.save(weights, words[0])
    else:
        found = seconds_of(own_step(words[0], (SOURCE, TARGET), torch.float32), int(words[1]))
        if rank() == 0:
            print(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def learned() -> dict[str, Tensor]:
    """Train a small network on all ranks in float64; returns weights and batch-norm statistics."""
    step = own_step("tiny", (CHECKED_SIZE, CHECKED_SIZE), torch.float64)
    for _ in range(CHECKED_STEPS):
        step()
    return weights_of(step.networks)


def own_step(architecture: str, sizes: tuple[Size, Size], dtype: torch.dtype) -> OwnStep:
    """Return this rank's step on its part of the global batch; `sizes` are those of the pictures of both domains."""
    share = PICTURES // world_size()
    workload = Workload(architecture, source=sizes[0], target=sizes[1], channels=CHANNELS)
    return build(workload, range(rank() * share, (rank() + 1) * share), dtype)


def seconds_of(step: OwnStep, steps: int) -> float:
    """Return the median seconds of so many steps, after one that does not count."""
    step()
    found = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        found.append(time.perf_counter() - begin)
    return median(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
