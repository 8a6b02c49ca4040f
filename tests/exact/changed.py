"""A program after a change to the project: `changed.py CHANGE argument… PROGRAM words…`.

CHANGE is Python code; it takes its arguments, if it has any, off the front with `sys.argv.pop(1)`.
"""

import runpy
import sys

exec(sys.argv.pop(1), {})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
