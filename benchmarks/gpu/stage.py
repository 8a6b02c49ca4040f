"""One stage in a process of its own: `stage.py NAME SIZES`; each row it finds is a line of JSON on standard output."""

import importlib
import json
import os
import sys
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.sizes import FULL, TINY
from benchmarks.gpu.timing import present_device


def main() -> None:
    """Measure, row by row."""
    name, size = sys.argv[1:]
    # Kept apart: what is called may print.
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    stage = importlib.import_module(f"benchmarks.gpu.{name}")
    for row in stage.measure(TINY if size == "tiny" else FULL, present_device()):
        rows.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
