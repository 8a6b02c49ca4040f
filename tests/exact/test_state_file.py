"""The state file, and run.json, say of every end what it was: its cause, whichever rank is left to write it."""

import os
import signal
from itertools import islice
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_LOST_RANK, EXIT_STOPPED, EXIT_USER_ERROR
from esl_dist.data.sampling import endless_order, rank_batches
from esl_dist.data.shards import open_shards
from esl_dist.endings import STATE_FILE, State, read_state
from esl_dist.runs.run_record import RUN_RECORD, Start, read_record
from tests.exact.shards import copied_shards, corrupt
from tests.exact.trainings import TRAIN, newest_step, run_in, training_words
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

ENDLESS = ("steps=1000", "checkpoints.every=2")
DEADLINE_SECONDS = 60


@pytest.fixture
def state_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_FILE, str(tmp_path / "state.json"))
    return tmp_path / "state.json"


def start(server: RankServer, town: Path, run: Path, ranks: int, *words: str) -> Job:
    return server.start(TRAIN, training_words(town, run, *words), ranks)


def changed(server: RankServer, town: Path, run: Path, change: str, *words: str, ranks: int = 2) -> Job:
    return server.start(CHANGED, [change, str(PROJECT / TRAIN), *training_words(town, run, *words)], ranks)


def assert_noted(file: Path, run: Path | None, state: str, code: int, rank: int) -> tuple[State, Start | None]:
    """Hold file and record to the same end; returns both."""
    noted = read_state(file)
    assert (noted.program, noted.state, noted.exit_code, noted.rank) == ("train", state, code, rank), noted
    assert noted.ended is not None
    assert noted.began is None or noted.began <= noted.ended
    left = [one.name for one in file.parent.iterdir() if one.name.startswith(file.name + ".")]
    assert left == [], "nothing beside it"
    if run is None:
        return noted, None
    record = read_record(run / RUN_RECORD)[-1]
    assert (record.state, record.exit_code, record.step) == (state, code, noted.step), record
    return noted, record


def test_it_runs_and_then_is_finished(server: RankServer, town: Path, tmp_path: Path, state_file: Path) -> None:
    run = run_in(tmp_path)
    job = start(server, town, run, 2, "steps=4")
    job.wait_until(lambda: newest_step(run) > 0)
    running = read_state(state_file)
    assert (running.state, running.exit_code, running.ended, running.step) == ("running", None, None, 0)
    assert job.exit_codes() == [0, 0], job.output()
    noted, _ = assert_noted(state_file, run, "finished", 0, 0)
    assert (noted.step, noted.words) == (4, "")
    # What is finished stays so when it is started again.
    assert start(server, town, run, 1, "steps=4").exit_codes() == [0]
    again = read_state(state_file)
    assert None not in (again.began, noted.began)
    assert again.began != noted.began
    assert again.step == 4


def test_a_mistake_of_one_rank_is_the_end_and_not_the_loss_that_follows_from_it(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path
) -> None:
    folder = copied_shards(town, tmp_path / "damaged")
    order = endless_order(len(open_shards(folder / "source_train")), 8, 0, 0, 0)
    named = corrupt(folder / "source_train", next(iter(islice(rank_batches(order, 4, 1, 1, 2), 1)))[0])
    run = run_in(tmp_path)
    job = start(server, folder, run, 2, *ENDLESS)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_USER_ERROR], job.output()
    noted, record = assert_noted(state_file, run, "failed", EXIT_USER_ERROR, 1)
    assert named in noted.words
    assert record is not None
    assert record.words.startswith(f"rank 1 ended: {named}")


@pytest.mark.parametrize("lost", grid([0, 1], stay=[0]))
def test_the_loss_of_a_rank_is_noted_by_one_that_is_left(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path, lost: int
) -> None:
    run = run_in(tmp_path)
    job = start(server, town, run, 2, *ENDLESS)
    job.wait_until(lambda: newest_step(run) > 0)
    job.kill(lost)
    assert job.exit_codes()[1 - lost] == EXIT_LOST_RANK, job.output()
    noted, _ = assert_noted(state_file, run, "failed", EXIT_LOST_RANK, 1 - lost)
    assert f"rank {lost}" in noted.words
    assert noted.step is not None
    assert noted.step > 0


DEFECT_OF_RANK_1 = """
import os
from esl_dist.training import loop
plain = loop.add_gradients
def fails(*arguments):
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("by zero")
    return plain(*arguments)
loop.add_gradients = fails
"""


def test_a_defect_is_noted_with_the_name_of_its_exception(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path
) -> None:
    run = run_in(tmp_path)
    job = changed(server, town, run, DEFECT_OF_RANK_1, *ENDLESS)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_DEFECT], job.output()
    noted, _ = assert_noted(state_file, run, "failed", EXIT_DEFECT, 1)
    assert noted.words == "ZeroDivisionError: by zero"


MISTAKE_OF_RANK_1 = """
import os, sys
if os.environ["RANK"] == "1":
    sys.argv.append("stepz=7")
"""


@pytest.mark.parametrize("words", [("stepz=7",), ("steps=soon",), ("--steps", "7"), ("--config", "/nowhere.yaml")])
def test_a_mistake_in_the_call_is_noted_before_a_run_is_known(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path, words: tuple[str, ...]
) -> None:
    job = start(server, town, run_in(tmp_path), 1, *words)
    assert job.exit_codes() == [EXIT_USER_ERROR]
    noted, _ = assert_noted(state_file, None, "failed", EXIT_USER_ERROR, 0)
    assert f"error: {noted.words}\n" in job.output()


def test_a_mistake_in_the_call_of_one_rank_is_noted_though_the_others_wait_for_it(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path
) -> None:
    job = changed(server, town, run_in(tmp_path), MISTAKE_OF_RANK_1, "timeout_minutes=0.05")
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_USER_ERROR], job.output()
    noted, _ = assert_noted(state_file, None, "failed", EXIT_USER_ERROR, 1)
    assert "stepz" in noted.words


def test_a_rank_that_gives_up_from_beside_its_stuck_work_notes_who_hangs(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path
) -> None:
    run = run_in(tmp_path)
    words = ["hang", str(PROJECT / TRAIN), *training_words(town, run, "timeout_minutes=0.1")]
    job = server.start("tests/exact/misbehave.py", words, 2)
    job.wait_for_end(0, DEADLINE_SECONDS)
    job.kill_all()
    assert job.exit_codes() == [EXIT_LOST_RANK, -signal.SIGKILL], job.output()
    noted, _ = assert_noted(state_file, run, "failed", EXIT_LOST_RANK, 0)
    assert noted.words.endswith(") hangs")
    assert noted.step == 2


@pytest.mark.parametrize("number", grid([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], stay=[signal.SIGHUP]))
def test_a_stop_is_noted_with_the_step_that_is_saved(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path, number: signal.Signals
) -> None:
    run = run_in(tmp_path)
    job = start(server, town, run, 2, *ENDLESS)
    job.wait_until(lambda: newest_step(run) > 0)
    job.kill(1, number)
    assert job.exit_codes() == [EXIT_STOPPED] * 2, job.output()
    noted, _ = assert_noted(state_file, run, "stopped", EXIT_STOPPED, read_state(state_file).rank)
    assert noted.step == newest_step(run)
    assert noted.words == f"r: saved at step {noted.step}"


HANGING_SAVE = """
import time
from esl_dist.runs import async_save
async_save.save_checkpoint = lambda *_: time.sleep(600)
"""


def test_a_second_ctrl_c_is_noted_where_the_process_does_not_wait_for_its_disk(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path
) -> None:
    run = run_in(tmp_path)
    job = changed(server, town, run, HANGING_SAVE, "steps=1000", "log_every=1")
    job.wait_until(lambda: "r: 1/1000 steps" in job.output())
    for rank in (0, 1):
        job.kill(rank, signal.SIGINT)
    job.wait_until(lambda: "press again to end at once" in job.output())
    for rank in (0, 1):
        job.kill(rank, signal.SIGINT)
    assert job.exit_codes(30) == [EXIT_INTERRUPTED] * 2, job.output()
    assert_noted(state_file, run, "interrupted", EXIT_INTERRUPTED, read_state(state_file).rank)


def test_a_job_that_was_killed_as_a_whole_is_left_as_running_and_the_next_start_begins_anew(
    server: RankServer, town: Path, tmp_path: Path, state_file: Path
) -> None:
    run = run_in(tmp_path)
    job = start(server, town, run, 1, *ENDLESS)
    job.wait_until(lambda: newest_step(run) > 0)
    job.kill(0)
    assert job.exit_codes() == [-signal.SIGKILL]
    killed = read_state(state_file)
    assert killed.state == "running"
    assert start(server, town, run, 1, "steps=0").exit_codes() == [EXIT_USER_ERROR]
    noted, _ = assert_noted(state_file, None, "failed", EXIT_USER_ERROR, 0)
    assert None not in (noted.began, killed.began)
    assert noted.began != killed.began


def test_a_file_that_cannot_be_written_costs_a_warning_and_no_training(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    words = training_words(town, run_in(tmp_path), "steps=1")
    job = server.start(TRAIN, words, 1, {STATE_FILE: os.fspath(tmp_path)})
    assert job.exit_codes() == [0]
    assert f"warning: {STATE_FILE}={tmp_path}: cannot be written (Is a directory)" in job.output()


def test_programs_that_end_at_a_signal_at_once_note_that_they_were_stopped(
    server: RankServer, town: Path, teacher: Path, tmp_path: Path, state_file: Path
) -> None:
    """Also while the main thread is in a collective, where it does not come to its handler: rank 0 waits for rank 1."""
    words = [f"data.path={town}/target_train", f"checkpoint={teacher}", f"output={tmp_path / 'scores'}", "workers=0"]
    change = "import os, time\nif os.environ['RANK'] == '1':\n    from esl_dist.inference import scoring\n"
    change += "    scoring.sum_over_ranks = lambda *_: time.sleep(600)\n"
    job = server.start(CHANGED, [change, str(PROJECT / "launch/evaluate.py"), *words], 2)
    job.wait_until(lambda: "scoring: 3/3" in job.output())
    job.kill(0, signal.SIGUSR1)
    job.wait_for_end(0)
    job.kill_all()
    assert job.exit_codes()[0] in (-signal.SIGUSR1, 128 + signal.SIGUSR1), job.output()
    noted = read_state(state_file)
    assert (noted.program, noted.state, noted.exit_code, noted.rank) == ("evaluate", "stopped", EXIT_STOPPED, 0)
    assert noted.words == "stopped by SIGUSR1"
    assert noted.step is None
