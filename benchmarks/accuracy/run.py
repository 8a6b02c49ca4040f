"""How accurate the methods are on real pictures, over seeds: `python benchmarks/accuracy/run.py FOLDER [--data …]`.

Two tasks (`tasks`), a row a method (`methods`), three seeds. Every number is made by the programs of `launch/`, whose
commands are those that a user would give. A seed is finished for both tasks before the next begins, so that what a stop
leaves can be compared; the same command goes on where it was stopped. Two starts in one folder may share the work if
each is given tasks of its own.

results.json and details.json go into FOLDER; those beside this file are the reported ones (`--output`).
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.cells import Cell, Place, make_cell, read_cell, require_one_precision
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.results import finished, table, write_results
from benchmarks.accuracy.tasks import SCALES, TASKS
from esl_dist.early import EXIT_INTERRUPTED
from esl_dist.endings import EXIT_USER_ERROR
from esl_dist.errors import UserError
from esl_dist.reporting.accounts import duration

SEEDS = (0, 1, 2)
"""That are reported; whatever is tried is tried on another."""

DATA = Path("../shared/data")
WEIGHTS = Path("../shared/weights/mobilenet_v2_imagenet_features.safetensors")


def main(words: Sequence[str] | None = None) -> int:
    """Make the cells that are asked for and missing, then print the table; returns the exit code."""
    options = _options(words)
    scale = SCALES[options.scale]
    if options.precision is not None:
        scale = replace(scale, precision=options.precision)
    weights = None if options.scale == "tiny" else options.weights
    place = Place(options.folder, options.data, weights, scale)
    output = options.output or place.folder
    # Of the reported seeds all that are finished are written, whichever are asked for; others are a table of their own.
    seeds = SEEDS if set(options.seeds) <= set(SEEDS) else options.seeds
    cells = [Cell(task, method, seed) for seed in options.seeds for task in options.tasks for method in options.methods]
    try:
        missing = [cell for cell in cells if read_cell(cell, place) is None]
        require_one_precision(missing, place)
        for cell in _told(missing, len(cells)):
            make_cell(cell, place)
            write_results(finished(place, seeds), scale, output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except subprocess.CalledProcessError as error:
        told = f"ended with exit code {error.returncode}; its message is above"
        print(f"error: {shlex.join(error.cmd)}: {told}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    found = finished(place, seeds)
    write_results(found, scale, output)
    print(table(found))
    print(f"\nmIoU in percent; {output}/results.json and details.json hold more")
    return 0


def _told(missing: Sequence[Cell], all_cells: int) -> Iterator[Cell]:
    """Give the cells, and tell before each how many are finished and how long the others will take."""
    before, began = all_cells - len(missing), time.monotonic()
    for made, cell in enumerate(missing):
        left = f", {duration((time.monotonic() - began) / made * (len(missing) - made))} left" if made else ""
        of = f"{TASKS[cell.task].title}, seed {cell.seed}, {METHODS[cell.method].title}"
        print(f"accuracy: {before + made}/{all_cells} cells{left}; now {of}", file=sys.stderr, flush=True)
        yield cell


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How accurate the methods are on real pictures, over seeds.")
    parser.add_argument("folder", type=Path, help="for shards, runs and cells; what it holds is not made again")
    parser.add_argument("--output", type=Path, help="for results.json and details.json (default: the folder)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with camvid/ and kitti/ (default: %(default)s)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        help="MobileNetV2's of ImageNet, torchvision's names (default: %(default)s)",
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="cpu", help="size and length of trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=["no", "bf16"],
        help="of forward passes (default: the scale's); `no`, float32, for a processor that computes no bfloat16",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(default: 0 1 2)")
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS), metavar="TASK", help="(default: all)")
    parser.add_argument(
        "--methods", choices=METHODS, nargs="+", default=list(METHODS), metavar="METHOD", help="(default: all)"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
