"""A rank that is slow but gets on is waited for, and so is a job that was suspended: neither is taken for lost."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from esl_dist.ranks.heartbeat import BEAT_SECONDS, SILENT_SECONDS
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    assert_whole,
    everything_learned,
    run_in,
    train,
    training_words,
)
from tests.on_ranks import PROJECT, Job, RankServer
from tests.programs import small_town

pytestmark = pytest.mark.exact

LABEL, SCORE = "launch/pseudo_label.py", "launch/evaluate.py"
TIMEOUT_SECONDS = SILENT_SECONDS
TIMEOUT = f"timeout_minutes={TIMEOUT_SECONDS / 60}"
PARTS = 8
"""Of rank 1's work: pictures of a single piece, passes of a step."""
PART_SECONDS = 1.0
assert PART_SECONDS < TIMEOUT_SECONDS < PARTS * PART_SECONDS - 2 * BEAT_SECONDS


@pytest.fixture(scope="module")
def large_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a town in which a rank of two has `PARTS` pictures of the target."""
    return small_town(tmp_path_factory.mktemp("town"), source=4, target=2 * PARTS, shard_bytes=10_000_000)


def start_slowly(server: RankServer, what: str, seconds: float, program: str, words: Sequence[str]) -> Job:
    return server.start("tests/exact/work_slowly.py", [what, str(seconds), str(PROJECT / program), *words], 2)


def start_with_slow_passes(server: RankServer, what: str, seconds: float, town: Path, run: Path) -> Job:
    words = training_words(town, run, f"batch_size={2 * PARTS}", f"accumulate={PARTS}", "steps=1", TIMEOUT)
    return start_slowly(server, what, seconds, TRAIN, words)


@pytest.mark.grid
def test_a_rank_that_is_slow_with_its_passes_or_with_reading_them_is_waited_for(
    server: RankServer, other_server: RankServer, large_town: Path, tmp_path: Path
) -> None:
    jobs = [
        start_with_slow_passes(server, "passes", PART_SECONDS, large_town, run_in(tmp_path, "computing")),
        # One of either domain is read for a pass.
        start_with_slow_passes(other_server, "samples", PART_SECONDS / 2, large_town, run_in(tmp_path, "reading")),
    ]
    for job in jobs:
        assert job.exit_codes() == [0, 0], job.output()


def test_a_rank_that_waits_for_a_slow_disk_is_waited_for(
    server: RankServer, other_server: RankServer, town: Path, tmp_path: Path
) -> None:
    jobs = {}
    for slow, one in (("saves", server), ("weights", other_server)):
        words = training_words(town, run_in(tmp_path, slow), "steps=1", TIMEOUT)
        jobs[slow] = start_slowly(one, slow, PARTS * PART_SECONDS, TRAIN, words)
    for slow, job in jobs.items():
        assert job.exit_codes() == [0, 0], job.output()
        assert_whole(run_in(tmp_path, slow), 1)


def test_a_rank_that_is_slow_with_its_pictures_is_waited_for(
    server: RankServer, other_server: RankServer, large_town: Path, tmp_path: Path
) -> None:
    run, target = run_in(tmp_path), f"{large_town}/target_train"
    train(server, large_town, run, 1, "steps=1")
    words = [f"checkpoint={run}", "workers=0", TIMEOUT]
    to_label = [*words, f"target.path={target}", f"output={tmp_path}/labels"]
    jobs = [
        start_slowly(server, "predictions", PART_SECONDS, LABEL, to_label),
        start_slowly(other_server, "scores", PART_SECONDS, SCORE, [*words, f"data.path={target}"]),
    ]
    for job in jobs:
        assert job.exit_codes() == [0, 0], job.output()


def test_a_training_that_was_suspended_as_a_whole_ends_like_one_that_was_not(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run, plain = run_in(tmp_path), run_in(tmp_path, "plain")
    words = training_words(town, run, "steps=1", TIMEOUT)
    job = start_slowly(server, "passes", TIMEOUT_SECONDS - BEAT_SECONDS, TRAIN, words)
    job.wait_until(lambda: "from step 0 to 1" in job.output())
    # Until rank 0 has noted that it waits for rank 1, which takes longer than that.
    time.sleep(3 * BEAT_SECONDS)
    send(job, signal.SIGSTOP)
    time.sleep(TIMEOUT_SECONDS + BEAT_SECONDS)
    send(job, signal.SIGCONT)
    assert job.exit_codes() == [0, 0], job.output()
    train(server, town, plain, 2, "steps=1")
    assert_same_bits(everything_learned(run), everything_learned(plain))


def send(job: Job, number: signal.Signals) -> None:
    for rank in (0, 1):
        assert not job.has_ended(rank), job.output()
        job.kill(rank, number)
