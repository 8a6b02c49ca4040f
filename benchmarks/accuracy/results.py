"""What a table leaves: results.json, details.json beside it, and the table as people read it.

results.json holds task → method → list of mIoU, as shares, one for each finished seed in their order; details.json,
for the same cells, the seeds, IoU by class, settings and commit. Spread is the standard deviation over seeds (n - 1);
what a row has over AdvEnt + ESL is taken seed by seed, from the same first stage.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accuracy.cells import PRECISION, Cell, Entries, Place, read_cell
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import TASKS, Scale
from esl_dist.files import write_json

Found = Mapping[str, Mapping[str, Mapping[int, Entries]]]
"""Task → method → seed → what its cell holds; only what is finished."""

COMPARED_WITH = "advent_esl"


def finished(place: Place, seeds: Sequence[int]) -> Found:
    """Read the finished cells of all tasks and methods."""
    found: dict[str, dict[str, dict[int, Entries]]] = {}
    for task in TASKS:
        for method in METHODS:
            cells = {seed: read_cell(Cell(task, method, seed), place) for seed in sorted(seeds)}
            if there := {seed: entries for seed, entries in cells.items() if entries is not None}:
                found.setdefault(task, {})[method] = there
    return found


def write_results(found: Found, scale: Scale, output: Path) -> None:
    """Write results.json and details.json into the folder `output`."""
    scores = {
        task: {method: [one.miou for one in by_seed.values()] for method, by_seed in by_method.items()}
        for task, by_method in found.items()
    }
    details: dict[str, Any] = {
        task: {
            method: {
                "title": METHODS[method].title,
                "seeds": {str(seed): asdict(entries) for seed, entries in by_seed.items()},
            }
            for method, by_seed in by_method.items()
        }
        for task, by_method in found.items()
    }
    # Two starts may share a folder, each with a task of its own.
    by = f".{os.getpid()}"
    write_json(output / "results.json", scores, by=by)
    # Each cell has its own precision.
    shared = {key: value for key, value in asdict(scale).items() if key != PRECISION}
    write_json(output / "details.json", {"scale": shared, "tasks": details}, by=by)


def table(found: Found) -> str:
    """Return the tables of mIoU in percent: a row a method, by seed, mean ± spread, and against AdvEnt + ESL."""
    return "\n\n".join(f"{TASKS[task].title}\n\n{_table(by_method)}" for task, by_method in found.items())


def _table(found: Mapping[str, Mapping[int, Entries]]) -> str:
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
    lines = [
        f"| | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | over AdvEnt + ESL |",
        "| --- |" + " ---: |" * (len(seeds) + 2),
    ]
    compared = found.get(COMPARED_WITH, {})
    for method, by_seed in found.items():
        gains = [one.miou - compared[seed].miou for seed, one in by_seed.items() if seed in compared]
        cells = [
            METHODS[method].title,
            *(f"{100 * by_seed[seed].miou:.1f}" if seed in by_seed else "" for seed in seeds),
            mean_and_spread([one.miou for one in by_seed.values()]),
            "" if method == COMPARED_WITH else mean_and_spread(gains, "+"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_and_spread(shares: Sequence[float], sign: str = "") -> str:
    """Write shares as `mean ± standard deviation` in percent; of one there is no spread, of none nothing."""
    if not shares:
        return ""
    mean = f"{100 * statistics.mean(shares):{sign}.1f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else mean
