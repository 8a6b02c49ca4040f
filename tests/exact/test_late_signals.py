"""A signal that comes when all is done, or in the last step, does not make a failed program of a finished one."""

import json
import subprocess
from pathlib import Path

import pytest

from esl_dist.endings import EXIT_USER_ERROR, STATE_FILE, read_state
from esl_dist.runs.run_record import RUN_RECORD, read_record
from tests.exact.trainings import TRAIN, assert_whole, newest_step, run_in, training_words
from tests.on_ranks import CHANGED, PROJECT, RankServer
from tests.programs import command, environment

pytestmark = pytest.mark.exact

SIGNALLED = """
import atexit, importlib, os, signal, sys
places, numbers = sys.argv.pop(1).split(), [signal.Signals[name] for name in sys.argv.pop(1).split()]
def signal_once():
    while numbers:
        os.kill(os.getpid(), numbers.pop())
for place in places:
    if place == "shutdown":
        atexit.register(signal_once)
        continue
    module, name = place.split(":")
    owner = importlib.import_module(module)
    def signalled(*arguments, plain=getattr(owner, name)):
        signal_once()
        return plain(*arguments)
    setattr(owner, name, signalled)
"""
"""Changes a program so that it sends itself these signals, once, at the first of these functions that it calls."""

ALL = "SIGTERM SIGUSR1 SIGHUP SIGINT"
ONLY_STEP, SAVE = "esl_dist.training.loop:add_gradients", "esl_dist.runs.async_save:save_checkpoint"
EXPORT, PARTING = "esl_dist.training.loop:_export", "torch.distributed:destroy_process_group"


@pytest.mark.parametrize("place", [ONLY_STEP, SAVE, EXPORT, PARTING])
def test_a_training_is_finished_whatever_comes_from_its_last_step_on(
    server: RankServer, town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv(STATE_FILE, str(tmp_path / "state.json"))
    run = run_in(tmp_path)
    words = [SIGNALLED, place, ALL, str(PROJECT / TRAIN), *training_words(town, run, "steps=1")]
    job = server.start(CHANGED, words, 2)
    assert job.exit_codes() == [0, 0], job.output()
    assert_whole(run, 1)
    assert (run / "weights.safetensors").exists()
    noted, [record] = read_state(tmp_path / "state.json"), read_record(run / RUN_RECORD)
    assert (noted.state, noted.exit_code, noted.step) == ("finished", 0, 1)
    assert (record.state, record.exit_code, record.step) == ("finished", 0, 1)


def test_labels_and_scores_that_are_written_are_not_taken_back_by_a_signal(
    server: RankServer, town: Path, teacher: Path, tmp_path: Path
) -> None:
    target = f"{town}/target_train"
    label = ["launch/pseudo_label.py", f"target.path={target}", f"output={tmp_path / 'labels'}"]
    score = ["launch/evaluate.py", f"data.path={target}", f"output={tmp_path / 'scores.json'}"]
    for program, *words in (label, score):
        changed = [SIGNALLED, PARTING, ALL, str(PROJECT / program), *words, f"checkpoint={teacher}", "workers=0"]
        assert server.start(CHANGED, changed, 2).exit_codes() == [0, 0], server.log.read_text()
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] is not None


def test_a_signal_while_python_shuts_down_is_too_late(town: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    words = [SIGNALLED, "shutdown", ALL, str(PROJECT / TRAIN), *training_words(town, run, "steps=1")]
    done = subprocess.run(command(CHANGED, *words), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert newest_step(run) == 1


def test_a_signal_after_a_mistake_does_not_change_its_code(town: Path, tmp_path: Path) -> None:
    """Launchers send SIGTERM to the other ranks when the first has ended."""
    words = [SIGNALLED, "shutdown", ALL, str(PROJECT / TRAIN), *training_words(town, run_in(tmp_path), "steps=soon")]
    done = subprocess.run(command(CHANGED, *words), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USER_ERROR, done.stderr
