"""Ctrl-C while a program imports ends it with one line, and later raises as Python has it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_INTERRUPTED, run_program
from esl_dist.config import Demo
from esl_dist.early import end_at_interrupt

PROJECT = Path(__file__).resolve().parent.parent

INTERRUPTED_AT_THE_FIRST_HEAVY_IMPORT = """
import os, runpy, signal, sys

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "esl_dist.command_line"):
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Presses())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize(
    "program", ["launch/train", "launch/evaluate", "launch/pseudo_label", "launch/demo", "shards/prepare"]
)
def test_ctrl_c_during_the_imports_is_one_line(program: str) -> None:
    file = PROJECT / f"{program}.py"
    words = [sys.executable, "-c", INTERRUPTED_AT_THE_FIRST_HEAVY_IMPORT, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_INTERRUPTED, "interrupted\n")


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_the_program_itself_has_the_handler_that_was_there(monkeypatch: pytest.MonkeyPatch, before: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    own = signal.signal(signal.SIGINT, before)  # type: ignore[arg-type]
    seen: list[object] = []
    try:
        end_at_interrupt()
        run_program(Demo, lambda config: seen.append(signal.getsignal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, own)
    assert seen == [before]
