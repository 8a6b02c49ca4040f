"""A rank that dies, hangs or disagrees ends the job, with a message that names it and says why."""

import signal
from itertools import islice
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.data.sampling import endless_order, rank_batches
from esl_dist.data.shards import open_shards
from tests.exact.ranks import PROJECT, Job, RankServer
from tests.exact.shards import copied_shards, corrupt
from tests.exact.trainings import TRAIN, newest_step, run_in, start_training, training_words

pytestmark = pytest.mark.exact

ENDLESS = ("steps=1000", "checkpoints.every=2")
DEADLINE_SECONDS = 60


def started_training(server: RankServer, town: Path, run: Path, *words: str) -> Job:
    """Return a training on two ranks that has come to its first checkpoint."""
    job = start_training(server, town, run, 2, *ENDLESS, *words)
    job.wait_until(lambda: newest_step(run) > 0)
    return job


def misbehaving(server: RankServer, town: Path, run: Path, how: str, *words: str, ranks: int = 2) -> Job:
    program = [how, str(PROJECT / TRAIN), *training_words(town, run, "checkpoints.every=100", *words)]
    return server.start("tests/exact/misbehave.py", program, ranks)


def error_of(job: Job, rank: int) -> str:
    """Return the rank's message; there is one, of one line."""
    lines = [line for line in job.output().replace("\r", "\n").splitlines() if f"error (rank {rank}): " in line]
    assert len(lines) == 1, job.output()
    return lines[0]


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_rank_names_one_that_was_killed_and_ends(
    server: RankServer, town: Path, tmp_path: Path, lost: int
) -> None:
    job = started_training(server, town, run_in(tmp_path))
    job.kill(lost)
    job.wait_for_end(1 - lost, DEADLINE_SECONDS)
    assert job.exit_codes()[1 - lost] == EXIT_LOST_RANK, job.output()
    assert f"rank {lost}" in error_of(job, 1 - lost).partition(": ")[2]
    assert "Traceback" not in job.output()


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_rank_names_one_that_is_stopped_after_the_timeout(
    server: RankServer, town: Path, tmp_path: Path, lost: int
) -> None:
    """Rank 0 keeps the store of the notes, which then does not answer."""
    job = started_training(server, town, run_in(tmp_path), "timeout_minutes=0.1")
    job.kill(lost, signal.SIGSTOP)
    job.wait_for_end(1 - lost, DEADLINE_SECONDS)
    job.kill_all()
    assert job.exit_codes()[1 - lost] == EXIT_LOST_RANK, job.output()
    said = error_of(job, 1 - lost)
    expected = {0: "the store of the ranks is lost", 1: "does not answer any more: killed, or stopped"}
    assert expected[lost] in said
    assert f"rank {lost}" in said.partition(": ")[2]


def test_the_others_name_one_that_does_not_come_to_the_start(server: RankServer, town: Path, tmp_path: Path) -> None:
    job = misbehaving(server, town, run_in(tmp_path), "not come", "timeout_minutes=0.05", ranks=3)
    assert job.exit_codes() == [EXIT_LOST_RANK, 0, EXIT_LOST_RANK], job.output()
    for rank in (0, 2):
        assert "rank 1 did not come to the start within timeout_minutes" in error_of(job, rank)
    assert "Traceback" not in job.output()


def test_the_other_rank_names_one_that_lives_and_hangs_after_the_timeout(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    job = misbehaving(server, town, run_in(tmp_path), "hang", "timeout_minutes=0.1")
    job.wait_for_end(0, DEADLINE_SECONDS)
    job.kill_all()
    assert job.exit_codes() == [EXIT_LOST_RANK, -signal.SIGKILL], job.output()
    assert "rank 1 (last at step 3; tests/exact/misbehave.py:" in error_of(job, 0)
    assert error_of(job, 0).endswith(") hangs")


def test_an_error_of_one_rank_is_in_the_message_of_the_other(server: RankServer, town: Path, tmp_path: Path) -> None:
    folder = copied_shards(town, tmp_path / "damaged")
    order = endless_order(len(open_shards(folder / "source_train")), 8, 0, 0, 0)
    position = next(iter(islice(rank_batches(order, 4, 1, 1, 2), 1)))[0]
    named = corrupt(folder / "source_train", position)
    job = start_training(server, folder, run_in(tmp_path), 2, *ENDLESS)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_USER_ERROR], job.output()
    assert named in error_of(job, 1)
    assert f"rank 1 ended: {named}" in error_of(job, 0)
    assert "Traceback" not in job.output()


def test_an_error_of_rank_0_is_heard_by_one_that_computes_longer_than_rank_0_waits(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    """Rank 0 keeps the store; the other's connection is seen to be broken when both are long gone."""
    folder = copied_shards(town, tmp_path / "damaged")
    order = endless_order(len(open_shards(folder / "source_train")), 8, 0, 0, 0)
    named = corrupt(folder / "source_train", next(iter(islice(rank_batches(order, 4, 1, 0, 2), 1)))[0])
    job = misbehaving(server, folder, run_in(tmp_path), "compute for long", "seed=0", "steps=1000")
    assert job.exit_codes() == [EXIT_USER_ERROR, EXIT_LOST_RANK], job.output()
    assert named in error_of(job, 0)
    assert f"rank 0 ended: {named}" in error_of(job, 1)


@pytest.mark.parametrize("how", ["another configuration", "other shards"])
def test_ranks_that_were_given_something_else_refuse_to_start(
    server: RankServer, town: Path, tmp_path: Path, how: str
) -> None:
    job = misbehaving(server, town, run_in(tmp_path), how, "steps=2")
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    what = how.removeprefix("another ").removeprefix("other ")
    for rank in (0, 1):
        assert f"ranks [1] were started with another {what} than rank 0" in error_of(job, rank)
    assert "Traceback" not in job.output()


def test_a_rank_that_would_do_fewer_steps_ends_the_job_before_they_part(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    job = misbehaving(server, town, run_in(tmp_path), "fewer steps", "steps=1000")
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    for rank in (0, 1):
        assert "ranks [1] are to do another number of steps than rank 0" in error_of(job, rank)
    assert "Traceback" not in job.output()
    assert "frame #" not in job.output(), "torch tells of a store that is gone with a page"
