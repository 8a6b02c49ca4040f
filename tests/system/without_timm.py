"""A program where timm is not installed: `without_timm.py PROGRAM words…`."""

import runpy
import sys

assert "timm" not in sys.modules
# What Python itself takes for a module that is not there.
sys.modules["timm"] = None  # type: ignore[assignment]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
