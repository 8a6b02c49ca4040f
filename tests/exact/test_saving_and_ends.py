"""A training that ends while it saves finishes the checkpoint, and one whose save fails ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_INTERRUPTED, EXIT_USER_ERROR
from esl_dist.runs.checkpoints import checkpoint_folder
from tests.exact.trainings import TRAIN, run_in, training_words
from tests.on_ranks import CHANGED, PROJECT, RankServer
from tests.programs import environment
from tests.training.small_runs import newest_whole

pytestmark = pytest.mark.exact

INTERRUPTED_SAVE = """
import os, signal, threading, time
from esl_dist.runs import async_save
plain = async_save.save_checkpoint
def late(*arguments):
    # The second one may come before the first is noted, and then they are one.
    while threading.main_thread().is_alive():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    threading.main_thread().join()
    return plain(*arguments)
async_save.save_checkpoint = late
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def test_a_checkpoint_is_finished_when_the_training_is_interrupted_twice_before_a_byte_of_it_is_written(
    town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    changed = [str(PROJECT / CHANGED), INTERRUPTED_SAVE, str(PROJECT / TRAIN)]
    done = subprocess.run(
        [sys.executable, *changed, *training_words(town, run, "steps=1000")],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=100,
    )
    assert done.returncode == EXIT_INTERRUPTED, done.stderr
    assert newest_whole(run) == checkpoint_folder(run, 1)


FAILING_SAVE = """
import threading
from esl_dist.runs import async_save
from esl_dist.training import loop
from esl_dist.errors import UserError
plain, failing, threads, steps = loop.add_gradients, threading.Event(), [], []
def fail(*_):
    threads.append(threading.current_thread())
    failing.set()
    raise UserError("the disk is full")
def counted(*arguments):
    steps.append(1)
    print(f"step {len(steps)} begins", flush=True)
    if len(steps) == 3:
        failing.wait(20)
        threads[0].join()
    return plain(*arguments)
async_save.save_checkpoint, loop.add_gradients = fail, counted
"""


def test_a_save_that_fails_between_two_saves_ends_the_training_with_the_step_that_is_being_done(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    words = training_words(town, run_in(tmp_path), "steps=8", "checkpoints.every=2")
    job = server.start(CHANGED, [FAILING_SAVE, str(PROJECT / TRAIN), *words], 1)
    assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    assert "error: the disk is full" in job.output()
    assert "step 3 begins" in job.output()
    assert "step 4 begins" not in job.output()
