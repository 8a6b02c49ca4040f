"""While a step runs, the next one's batch is read and told of: what goes wrong in it, or is wished, costs no step."""

from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.endings import EXIT_STOPPED
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    everything_learned,
    newest_step,
    run_in,
    train,
    training_words,
)
from tests.on_ranks import PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

UNREAD = ("steps=3", "checkpoints.every=2", "checkpoints.keep_newest=10")
"""Of a training whose last batch cannot be read."""


def train_with(server: RankServer, town: Path, run: Path, where: tuple[str, int, int], *words: str) -> Job:
    """Train where something happens: what, in which step, on how many ranks."""
    what, step, ranks = where
    program = [what, str(step), str(PROJECT / TRAIN), *training_words(town, run, *words)]
    return server.start("tests/exact/in_a_step.py", program, ranks)


def train_until_a_batch_cannot_be_read(server: RankServer, town: Path, run: Path, ranks: int) -> None:
    job = train_with(server, town, run, ("fail to read", 3, ranks), *UNREAD)
    # The other rank waits for it, and hears.
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_USER_ERROR][-ranks:], job.output()
    assert "the batch of step 3 is damaged" in job.output()
    assert "Traceback" not in job.output()
    assert newest_step(run) == 2


def test_an_error_in_reading_a_batch_waits_until_the_step_before_is_saved(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    train_until_a_batch_cannot_be_read(server, town, run_in(tmp_path), 2)


@pytest.mark.grid
@pytest.mark.parametrize("ranks", [1, 2])
def test_once_the_batch_can_be_read_the_run_goes_on_as_if_nothing_had_been(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    run, whole = run_in(tmp_path), run_in(tmp_path, "whole")
    train_until_a_batch_cannot_be_read(server, town, run, ranks)
    for one in (run, whole):
        train(server, town, one, ranks, *UNREAD)
    assert_same_bits(everything_learned(run), everything_learned(whole))


def test_a_signal_in_the_last_step_finds_a_training_that_ends_by_itself(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    job = train_with(server, town, run, ("signal in passes", 3, 2), "steps=3")
    assert job.exit_codes() == [0, 0], job.output()
    assert newest_step(run) == 3


@pytest.mark.parametrize(
    ("what", "stops_after"), [("signal in passes", 2), ("signal in update", 3)], ids=["passes", "update"]
)
def test_a_signal_before_the_next_step_is_told_of_stops_after_this_one_and_a_later_one_after_the_next(
    server: RankServer, town: Path, tmp_path: Path, what: str, stops_after: int
) -> None:
    run = run_in(tmp_path)
    job = train_with(server, town, run, (what, 2, 2), "steps=4", "checkpoints.every=100")
    assert job.exit_codes() == [EXIT_STOPPED] * 2, job.output()
    assert newest_step(run) == stops_after
