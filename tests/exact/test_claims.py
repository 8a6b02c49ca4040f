"""Two starts of one job do not work in the same folder; when the first ends, however it ends, the second can begin."""

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_USER_ERROR
from esl_dist.ranks import collectives
from esl_dist.runs import folder_lock
from esl_dist.runs.folder_lock import LOCK, lock_folder
from tests.exact.trainings import TRAIN, newest_step, run_in, start_training, train, training_words
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

LABEL = "launch/pseudo_label.py"


def pause(job: Job) -> None:
    """Let a job live, and not come to its end before the other has been tried."""
    for rank in range(len(job.processes)):
        assert not job.has_ended(rank), job.output()
        job.kill(rank, signal.SIGSTOP)


def assert_refused(job: Job, folder: Path, ranks: int, setting: str) -> None:
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    messages = [line for line in job.output().splitlines() if line.startswith("error")]
    assert len(messages) == ranks, job.output()
    for message in messages:
        assert f"{folder}: another start is at work in this folder; wait for its end or stop it" in message
        assert message.endswith(f"choose another {setting}")


@pytest.mark.parametrize(("ranks", "then"), grid([(1, 2), (2, 1)], stay=[(2, 1)]))
def test_a_run_is_trained_by_one_start_at_a_time_and_goes_on_at_once_after_a_kill(
    server: RankServer, other_server: RankServer, town: Path, tmp_path: Path, ranks: int, then: int
) -> None:
    run = run_in(tmp_path)
    # Processes that read samples outlive their trainer by some seconds.
    first = start_training(server, town, run, ranks, "steps=1000", "loader.workers=1")
    first.wait_until(lambda: newest_step(run) > 0)
    pause(first)
    assert_refused(start_training(other_server, town, run, then, "steps=1000", "seed=2"), run, then, "name")
    first.kill_all()
    first.exit_codes()
    done = newest_step(run)
    assert f"from step {done} to {done + 1}" in train(other_server, town, run, then, f"steps={done + 1}")


def test_runs_of_other_names_are_trained_side_by_side(
    server: RankServer, other_server: RankServer, town: Path, tmp_path: Path
) -> None:
    first = start_training(server, town, run_in(tmp_path, "a"), 1, "steps=1000")
    first.wait_until(lambda: newest_step(run_in(tmp_path, "a")) > 0)
    pause(first)
    train(other_server, town, run_in(tmp_path, "b"), 1, "steps=1")


def test_a_folder_of_pseudo_labels_is_filled_by_one_start_at_a_time(
    server: RankServer, other_server: RankServer, town: Path, tmp_path: Path
) -> None:
    run, output = run_in(tmp_path), tmp_path / "labels"
    train(server, town, run, 1, "steps=1")
    words = [f"checkpoint={run}", f"target.path={town}/target_train", f"output={output}", "workers=0"]
    first = server.start("tests/exact/label_slowly.py", [str(PROJECT / LABEL), *words], 1)
    first.wait_until(lambda: (output / ".scratch/job.json").exists())
    pause(first)
    before = (output / ".scratch/job.json").stat()
    assert_refused(other_server.start(LABEL, [*words, "entropy_floor=0.2"], 2), output, 2, "output")
    assert (output / ".scratch/job.json").stat() == before, "what the first has done stands"
    first.kill(0, signal.SIGCONT)
    assert first.exit_codes() == [0], first.output()
    assert other_server.run(LABEL, words, 2) == [0, 0], "finished already"


def test_a_rank_that_outlives_rank_0_keeps_the_folder_for_it_still_writes(
    server: RankServer, other_server: RankServer, town: Path, tmp_path: Path
) -> None:
    run, output = run_in(tmp_path), tmp_path / "labels"
    train(server, town, run, 1, "steps=1")
    words = [f"checkpoint={run}", f"target.path={town}/target_train", f"output={output}", "workers=0"]
    first = server.start("tests/exact/label_slowly.py", [str(PROJECT / LABEL), *words], 2)
    first.wait_until(lambda: (output / ".scratch/job.json").exists())
    pause(first)
    first.kill(0)
    first.wait_for_end(0)
    assert_refused(other_server.start(LABEL, [*words, "entropy_floor=0.2"], 2), output, 2, "output")
    first.kill_all()
    first.exit_codes()
    assert other_server.run(LABEL, words, 1) == [0], other_server.log.read_text()


ANOTHER_START_FINISHES = """
import shutil, sys
from esl_dist.inference.labelling import job
lock_folder, finished = job.lock_folder, sys.argv.pop(1)
def late(output, setting):
    shutil.copytree(finished, output)
    lock_folder(output, setting)
job.lock_folder = late
"""


def test_pseudo_labels_that_another_start_has_finished_just_before_the_claim_are_not_made_again(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run, finished, output = run_in(tmp_path), tmp_path / "a", tmp_path / "b"
    train(server, town, run, 1, "steps=1")
    words = [f"checkpoint={run}", f"target.path={town}/target_train", "workers=0"]
    assert server.run(LABEL, [*words, f"output={finished}"], 1) == [0], server.log.read_text()
    changed = [ANOTHER_START_FINISHES, str(finished), str(PROJECT / LABEL)]
    job = server.start(CHANGED, [*changed, *words, f"output={output}"], 1)
    assert job.exit_codes() == [0], job.output()
    for path in finished.iterdir():
        assert (output / path.name).stat().st_mtime_ns == path.stat().st_mtime_ns, path.name


CHECKPOINTS_GO_DURING_THE_START = """
import shutil
from esl_dist.training import setup
lock_folder = setup.lock_folder
def late(run, setting):
    shutil.rmtree(run / "checkpoints")
    lock_folder(run, setting)
setup.lock_folder = late
"""


def test_a_run_whose_checkpoints_go_during_the_start_does_not_begin_anew_without_its_weights_to_start_from(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    train(server, town, run, 1, "steps=1")
    changed = [CHECKPOINTS_GO_DURING_THE_START, str(PROJECT / TRAIN)]
    job = server.start(CHANGED, [*changed, *training_words(town, run, "steps=2")], 1)
    assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    assert f"error: {run}: its checkpoints came or went during the start; start again" in job.output()


def test_no_rank_goes_on_before_every_rank_has_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else, were rank 0 lost at once, another start could take the folder from the ranks that are still to come."""
    calls: list[str] = []
    monkeypatch.setattr(folder_lock, "broadcast_flags", lambda flags: [True])
    monkeypatch.setattr(folder_lock, "is_main", lambda: False)
    monkeypatch.setattr(folder_lock, "rank", lambda: 1)
    monkeypatch.setattr(folder_lock, "wait_for_all", lambda: calls.append("wait"))
    monkeypatch.setattr(fcntl, "lockf", lambda *arguments: calls.append("lock"))
    lock_folder(tmp_path, "name")
    assert calls == ["lock", "wait"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_where_files_cannot_be_locked_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fcntl, "lockf", failing_with(number))
    lock_folder(tmp_path / "new" / "run", "name")
    place = f"{tmp_path}/new/run/{LOCK}"
    expected = (
        f"warning: {place}: this file system knows no locks ({os.strerror(number)}); make sure that no other start"
    )
    assert capsys.readouterr().err.startswith(expected)


def test_of_several_ranks_one_warns_that_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder_lock, "broadcast_flags", lambda flags: [True])
    monkeypatch.setattr(folder_lock, "wait_for_all", lambda: None)
    for module in (folder_lock, collectives):
        monkeypatch.setattr(module, "is_main", lambda: False)
    monkeypatch.setattr(fcntl, "lockf", failing_with(errno.ENOLCK))
    lock_folder(tmp_path, "name")
    assert capsys.readouterr().err == ""


def test_a_failing_disk_is_not_taken_for_one_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", failing_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as found:
        lock_folder(tmp_path, "name")
    assert found.value.filename == f"{tmp_path}/{LOCK}"


def failing_with(number: int) -> Callable[..., None]:
    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return lockf
