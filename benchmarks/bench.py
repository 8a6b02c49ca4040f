"""What `make bench` runs: the project beside the same work written out plainly, without a GPU.

`python benchmarks/bench.py [PART …] [--quick]` prints a row for each work (`measure.Row`) in a table. All parts at full
size also leave the rows in benchmarks/results.json. Each part is a module with a function `rows(quick)`, runs in a
process of its own, and checks that both sides have equal results. It ends with 1 if a part fails; a goal that is not
met is shown in the table.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import Row, UnequalError
from esl_dist.files import write_json
from esl_dist.reporting.accounts import duration

PARTS = ("jobs", "loading", "losses", "whole_step", "two_ranks", "packing", "start_up")
"""Modules of this folder."""

RESULTS = Path(__file__).with_name("results.json")
HEAD = "| work | ours | plain | unit | ratio | goal |\n| --- | ---: | ---: | --- | ---: | --- |"


def main(words: Sequence[str]) -> int:
    """Measure the parts that the command line names, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the project beside the same work written out plainly.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all of them")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; results.json stays")
    given = parser.parse_args(words)
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; name some of {', '.join(PARTS)}")
    # Those that a part needs more of, it starts itself: what a second one brings depends on what else runs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    rows, failures = measured(given.parts or PARTS, given.quick)
    print(table(rows))
    for part, why in failures.items():
        print(f"\n{part} failed: {why}")
    print(f"\ntook {duration(time.monotonic() - began)}")
    if failures:
        return 1
    if not given.parts and not given.quick:
        write_json(RESULTS, [asdict(row) for row in rows])
        print(f"rows: {RESULTS}")
    return 0


def measured(parts: Sequence[str], quick: bool) -> tuple[list[Row], dict[str, str]]:
    """Measure one part after the other; returns the rows, and of the parts that failed why."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        print(f"{part} (part {number} of {len(parts)})", file=sys.stderr, flush=True)
        # A process of its own: what a part sets, keeps or breaks is nobody else's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            try:
                rows += process.submit(rows_of, part, quick).result()
            except Exception as error:
                failures[part] = f"{type(error).__name__}: {error}"
                if not isinstance(error, UnequalError):
                    traceback.print_exception(error)
    return rows, failures


def rows_of(part: str, quick: bool) -> list[Row]:
    """Import a part and measure its rows."""
    found: list[Row] = import_module(f"benchmarks.{part}").rows(quick)
    return found


def table(rows: Sequence[Row]) -> str:
    """Return the rows in Markdown; three digits of each number, and whether goals are met."""
    lines = [
        [row.name, _digits(row.ours), _digits(row.plain), row.unit, _digits(row.ratio), _goal(row)] for row in rows
    ]
    return "\n".join([HEAD, *(f"| {' | '.join(line)} |" for line in lines)])


def _digits(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"


def _goal(row: Row) -> str:
    if row.goal is None:
        return "none"
    if row.ratio is None:
        return f"≥ {row.goal:g}: not measured"
    return f"≥ {row.goal:g}" + ("" if row.ratio >= row.goal else ": not met")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
