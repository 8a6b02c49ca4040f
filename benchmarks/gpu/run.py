"""What this project does on a GPU, in at most nine minutes: `run.py [--tiny] [--output FOLDER] [stage …]`.

Each stage is a process of its own with its own time limit, so that one that hangs or crashes costs itself alone. Its
result is one line of JSON, on standard output and in results.jsonl, as soon as it has ended; what it printed besides
is in a log of its name. In the end table.md has all of it for docs/performance.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.report import markdown
from benchmarks.programs import PROJECT

SHARES = {
    "machine": 20,
    "step": 150,
    "ranks": 90,
    "reference": 50,
    "waits": 25,
    "jobs": 100,
    "training": 75,
    "precisions": 20,
}
"""Stages, the most telling first, and the seconds that each has for itself; what one leaves goes to the next."""

ALL_SECONDS = sum(SHARES.values())
LEAST_SECONDS = 5
"""In which no stage comes to a row: with less it is not started."""


@dataclass(frozen=True)
class Place:
    """Where results go, and how large the stages are."""

    output: Path
    size: str


def main() -> None:
    """Run the stages that are asked for, or all."""
    options = _options()
    place = Place(Path(options.output), "tiny" if options.tiny else "full")
    place.output.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + ALL_SECONDS, []
    stages = options.stages or list(SHARES)
    results_file = place.output / "results.jsonl"
    results_file.write_text("", encoding="utf-8")
    for number, name in enumerate(stages):
        result = run_stage(name, allowed(stages[number + 1 :], end - time.monotonic()), place)
        results.append(result)
        line = json.dumps(result, ensure_ascii=False)
        with results_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
        (place.output / "table.md").write_text(markdown(results), encoding="utf-8")
    print(f"\n{markdown(results)}")
    if any(result["ended"] != "done" for result in results):
        sys.exit(1)


def allowed(to_come: Sequence[str], left: float) -> float:
    """Return the seconds that a stage may take of those that are left: all but the shares of the stages to come."""
    return left - sum(SHARES[name] for name in to_come)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What this project does on one GPU, measured.")
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(SHARES)}; none: all")
    parser.add_argument("--tiny", action="store_true", help="at sizes that a CPU is done with in seconds")
    parser.add_argument("--output", default="experiments/gpu", help="the folder of results")
    options = parser.parse_args()
    if unknown := [name for name in options.stages if name not in SHARES]:
        parser.error(f"there is no stage {unknown[0]!r}; expected some of {', '.join(SHARES)}")
    if not options.tiny and not any(Path("/dev").glob("nvidia[0-9]*")):
        parser.error("there is no NVIDIA GPU; --tiny runs every stage on the CPU")
    return options


def run_stage(name: str, seconds: float, place: Place) -> dict[str, Any]:
    """Run a stage for at most so many seconds; returns its rows, and how it ended."""
    if seconds < LEAST_SECONDS:
        return {
            "stage": name,
            "ended": "not started",
            "seconds": 0.0,
            "rows": [],
            "words": f"{seconds:.1f} s were left",
        }
    began = time.monotonic()
    rows, log = place.output / f"{name}.rows", place.output / f"{name}.log"
    command = [sys.executable, str(PROJECT / "benchmarks/gpu/stage.py"), name, place.size]
    with rows.open("wb") as found, log.open("wb") as words:
        # A session of its own, so that whatever it has started ends with it.
        process = subprocess.Popen(command, stdout=found, stderr=words, start_new_session=True)
        ended = _end_of(process, seconds)
    result = {"stage": name, "ended": ended, "seconds": round(time.monotonic() - began, 1), "rows": _read(rows)}
    if ended != "done":
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        result["words"] = lines[-1][:300] if lines else ""
    rows.unlink()
    return result


def _end_of(process: subprocess.Popen[bytes], seconds: float) -> str:
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after its {seconds:.0f} s"
    finally:
        _kill_session(process.pid)
        process.wait()
    return "done" if code == 0 else f"exit code {code}"


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _read(rows: Path) -> list[dict[str, Any]]:
    """Read the rows that were finished; a stage that was stopped may have begun another."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    main()
