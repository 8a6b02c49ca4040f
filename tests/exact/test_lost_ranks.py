"""A rank that dies, hangs or disagrees ends the job, with a message that names it and says why."""

import signal
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import psutil
import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.data.sampling import endless_order, rank_batches
from esl_dist.data.shards import open_shards
from tests.exact.shards import copied_shards, corrupt
from tests.exact.trainings import TRAIN, newest_step, run_in, start_training, train, training_words
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, Job, RankServer, has_ended

pytestmark = pytest.mark.exact

ENDLESS = ("steps=1000", "checkpoints.every=2")
DEADLINE_SECONDS = 60
LABEL, SCORE = "launch/pseudo_label.py", "launch/evaluate.py"


def started_training(server: RankServer, town: Path, run: Path, *words: str) -> Job:
    """Return a training on two ranks that has come to its first checkpoint."""
    job = start_training(server, town, run, 2, *ENDLESS, *words)
    job.wait_until(lambda: newest_step(run) > 0)
    return job


def misbehaving(
    server: RankServer,
    town: Path,
    run: Path,
    how: str,
    *words: str,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
) -> Job:
    program = [how, str(PROJECT / TRAIN), *training_words(town, run, "checkpoints.every=100", *words)]
    return server.start("tests/exact/misbehave.py", program, ranks, environment)


def error_of(job: Job, rank: int) -> str:
    """Return the rank's message; there is one, of one line."""
    lines = [line for line in job.output().replace("\r", "\n").splitlines() if f"error (rank {rank}): " in line]
    assert len(lines) == 1, job.output()
    return lines[0]


@pytest.mark.parametrize(("lost", "workers"), grid([(0, 1), (1, 0)], stay=[(0, 1)]))
def test_the_other_rank_names_one_that_was_killed_and_no_process_is_left(
    server: RankServer, town: Path, tmp_path: Path, lost: int, workers: int
) -> None:
    """Processes that read samples hold the lost rank's connections for some seconds."""
    job = started_training(server, town, run_in(tmp_path), f"loader.workers={workers}")
    readers = [reader.pid for rank in job.processes for reader in psutil.Process(rank).children()]
    assert len(readers) == 4 * workers, "one a rank and domain"
    job.kill(lost)
    job.wait_for_end(1 - lost, DEADLINE_SECONDS)
    assert job.exit_codes()[1 - lost] == EXIT_LOST_RANK, job.output()
    assert f"rank {lost}" in error_of(job, 1 - lost).partition(": ")[2]
    assert "Traceback" not in job.output()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all(has_ended(reader) for reader in readers):
        assert time.monotonic() < deadline, job.output()
        time.sleep(0.01)


def work_of(program: str, town: Path, teacher: Path, output: Path) -> list[str]:
    """Return the command line of pseudo-labels or scores of the target."""
    target = f"{town}/target_train"
    shards = [f"target.path={target}", f"output={output}"] if program == LABEL else [f"data.path={target}"]
    return [*shards, f"checkpoint={teacher}", "workers=0"]


BARS = {LABEL: ("predictions", "predicting"), SCORE: ("scores", "scoring")}
"""What each program is slow with, and what it tells meanwhile."""


@pytest.mark.parametrize("program", BARS)
def test_the_other_rank_names_one_that_was_killed_while_they_labelled_or_scored(
    server: RankServer, town: Path, teacher: Path, tmp_path: Path, program: str
) -> None:
    what, bar = BARS[program]
    words = [what, "0.3", str(PROJECT / program), *work_of(program, town, teacher, tmp_path / "labels")]
    job = server.start("tests/exact/work_slowly.py", words, 2)
    job.wait_until(lambda: f"{bar}: " in job.output())
    job.kill(0)
    assert job.exit_codes() == [-signal.SIGKILL, EXIT_LOST_RANK], job.output()
    assert "rank 0" in error_of(job, 1).partition(": ")[2]
    assert "Traceback" not in job.output()


@pytest.mark.parametrize("lost", grid([0, 1], stay=[0]))
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


@pytest.mark.parametrize("program", [LABEL, SCORE])
def test_a_corrupt_sample_of_one_rank_that_labels_or_scores_is_in_the_message_of_the_other(
    server: RankServer, town: Path, teacher: Path, tmp_path: Path, program: str
) -> None:
    shards = copied_shards(town, tmp_path / "damaged")
    folder = shards / "target_train"
    # Rank 1 labels the second shard, and scores every second sample.
    position = {LABEL: len(open_shards(folder).index.shards[0].samples), SCORE: 1}[program]
    named = corrupt(folder, position)
    job = server.start(program, work_of(program, shards, teacher, tmp_path / "labels"), 2)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_USER_ERROR], job.output()
    assert named in error_of(job, 1)
    assert f"rank 1 ended: {named}" in error_of(job, 0)
    assert "Traceback" not in job.output()


DEVICES = "precision, kind of device or ZeRO stage"
ZERO_1 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}


@pytest.mark.parametrize(
    ("how", "what", "environment"),
    [
        ("another configuration", "configuration", {}),
        ("other shards", "shards", {}),
        ("other weights to start from", "weights to start from", {}),
        ("another precision", DEVICES, {}),
        ("another ZeRO stage", DEVICES, {}),
        pytest.param("another ZeRO stage", DEVICES, ZERO_1, marks=pytest.mark.grid),
    ],
)
def test_ranks_that_were_given_something_else_refuse_to_start(
    server: RankServer, town: Path, tmp_path: Path, how: str, what: str, environment: dict[str, str]
) -> None:
    job = misbehaving(server, town, run_in(tmp_path), how, "steps=2", environment=environment)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
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


OTHER_WORD_ON_RANK_1 = """
import os, sys
other = sys.argv.pop(1)
if os.environ["RANK"] == "1":
    sys.argv.append(other)
"""


def test_ranks_that_estimate_statistics_on_other_pictures_refuse_to_score(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    train(server, town, run, 1, "steps=1")
    places = [f"checkpoint={run}", f"data.path={town}/target_val", f"statistics_from={town}/target_train"]
    changed = [OTHER_WORD_ON_RANK_1, f"statistics_from={town}/source_train", str(PROJECT / SCORE)]
    job = server.start(CHANGED, [*changed, *places, "workers=0"], 2)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    for rank in (0, 1):
        assert "ranks [1] were started with another statistics_from than rank 0" in error_of(job, rank)


ONLY_RANK_0_WRITES = """
import os, sys
folder = sys.argv.pop(1)
def refuse(event, arguments):
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and folder in str(arguments):
        raise PermissionError(event, arguments)
if os.environ["RANK"] != "0":
    sys.addaudithook(refuse)
"""


def test_no_rank_but_rank_0_writes_into_the_folder_of_a_run(server: RankServer, town: Path, tmp_path: Path) -> None:
    """Two that write one file, each beside its place and then there, take it from under each other."""
    run = run_in(tmp_path)
    words = training_words(town, run, "steps=2", "pictures_every=1", "checkpoints.keep_newest=1")
    job = server.start(CHANGED, [ONLY_RANK_0_WRITES, str(tmp_path), str(PROJECT / TRAIN), *words], 2)
    assert job.exit_codes() == [0, 0], job.output()
    assert {"config.yaml", "checkpoints", "weights.pth", "weights.safetensors"} <= {one.name for one in run.iterdir()}
