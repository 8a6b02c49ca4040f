"""Ctrl-C while a program imports ends it with one line, and later raises as Python has it."""

import importlib
import inspect
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_INTERRUPTED
from esl_dist.config_files import load_config
from esl_dist.early import end_at_interrupt

PROJECT = Path(__file__).resolve().parent.parent

INTERRUPTED_AT_AN_IMPORT = """
import os, runpy, signal, sys

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Presses())
module, *sys.argv = sys.argv[1:]
sys.modules.pop(module, None)
runpy.run_path(sys.argv[0], run_name="__main__")
"""

HEAVY = {
    "launch/train": ("torch", "source.path={here}", "target.path={here}"),
    "launch/evaluate": ("torch", "checkpoint={here}", "data.path={here}"),
    "launch/pseudo_label": ("torch", "checkpoint={here}", "target.path={here}", "output={here}-output"),
    "launch/predict": ("torch", "checkpoint={here}", "pictures={here}", "output={here}-output"),
    "launch/demo": ("torch", "output={here}-output", f"recipes={PROJECT}/configs/demo"),
    "shards/prepare": ("cv2", "dataset=d.yaml", "split=s", "output={here}-output"),
}
COMMAND = {"esl_dist/__main__": ("torch", "train", "source.path={here}", "target.path={here}")}
"""By program: a module that it imports when its settings are known to be right, and such settings."""


def pack_nothing(folder: Path) -> None:
    """Make a folder that looks like shards and like a run, as far as one looks without torch."""
    (folder / "index.json").write_text("{}")
    (folder / "checkpoints/step-00000001").mkdir(parents=True)


@pytest.mark.parametrize("program", [*HEAVY, *COMMAND])
@pytest.mark.parametrize("when", ["at once", "before the settings are read", "after"])
def test_ctrl_c_during_the_imports_is_one_line(program: str, when: str, tmp_path: Path) -> None:
    pack_nothing(tmp_path)
    module, *words = (HEAVY | COMMAND)[program]
    module = {"at once": "pathlib", "before the settings are read": "esl_dist.command_line"}.get(when, module)
    words = [module, str(PROJECT / f"{program}.py"), *(word.format(here=tmp_path) for word in words)]
    called = [sys.executable, "-c", INTERRUPTED_AT_AN_IMPORT, *words]
    done = subprocess.run(called, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_INTERRUPTED, "interrupted\n")


class _ReachedError(Exception):
    pass


FIRST_WORK = {
    "launch/train": "esl_dist.training.stop_request.stop_request",
    "launch/evaluate": "esl_dist.inference.inputs.on_ranks",
    "launch/pseudo_label": "esl_dist.inference.inputs.on_ranks",
    "launch/predict": "esl_dist.inference.inputs.on_ranks",
    "launch/demo": "esl_dist.data.toytown.write_toytown",
    "shards/prepare": "esl_dist.data.layouts.read_layout",
}


@pytest.mark.parametrize("program", HEAVY)
@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_the_work_of_a_program_has_the_handler_that_was_there(
    program: str, before: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then Ctrl-C tells what is saved; a program that was started deaf to it stays so."""

    def note(*arguments: object, **more: object) -> None:
        seen.append(signal.getsignal(signal.SIGINT))
        raise _ReachedError

    seen: list[object] = []
    pack_nothing(tmp_path)
    monkeypatch.setattr(FIRST_WORK[program], note)
    main = importlib.import_module(f"esl_dist.programs.{Path(program).name}").main
    schema = inspect.get_annotations(main, eval_str=True)["config"]
    config = load_config(schema, None, [word.format(here=tmp_path) for word in HEAVY[program][1:]])
    own = signal.signal(signal.SIGINT, before)  # type: ignore[arg-type]
    try:
        end_at_interrupt()
        with pytest.raises(_ReachedError):
            main(config)
    finally:
        signal.signal(signal.SIGINT, own)
    assert seen == [before]
