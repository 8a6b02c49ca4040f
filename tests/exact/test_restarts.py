"""A training that goes on, again and again, on other numbers of ranks and workers ends as the uninterrupted one."""

from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_USER_ERROR
from tests.exact.trainings import (
    TRAIN,
    assert_equal_to_rounding,
    different_bits,
    everything_learned,
    newest_step,
    run_in,
    start_training,
    train,
    train_in_float64,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import RankServer
from tests.programs import small_town

pytestmark = pytest.mark.exact

RANKS_AND_WORKERS = ((1, 1), (3, 0), (2, 1), (4, 0))
STEPS_EACH = 1
STEPS = STEPS_EACH * len(RANKS_AND_WORKERS)
# Two of the stops come while the rate still warms up.
WARM_UP = f"optimizer.warm_up_steps={STEPS - 1}"
WORDS = ("batch_size=12", "optimizer.learning_rate=0.002", WARM_UP, f"checkpoints.every={STEPS}")


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a town whose epochs do not end with the batches."""
    return small_town(tmp_path_factory.mktemp("town"), source=7, target=5)


@pytest.mark.parametrize("with_pseudo_labels", grid([False, True], stay=[True]))
def test_other_numbers_of_ranks_and_workers_after_every_stop_are_not_visible_in_the_weights(
    server: RankServer, town: Path, tmp_path: Path, pseudo_labels: Path, with_pseudo_labels: bool
) -> None:
    words = [*WORDS, f"pseudo_labels={pseudo_labels}"] if with_pseudo_labels else WORDS
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    train_in_float64(server, town, whole, 1, *words, f"steps={STEPS}")
    for number, (ranks, workers) in enumerate(RANKS_AND_WORKERS):
        step = number * STEPS_EACH
        now = (f"steps={step + STEPS_EACH}", f"loader.workers={workers}")
        printed = train_in_float64(server, town, cut, ranks, *words, *now)
        assert f"advent{' with pseudo-labels' if with_pseudo_labels else ''} on 7 source and 5 target" in printed
        assert f"{ranks} process" in printed
        assert f"from step {step} to {step + STEPS_EACH}" in printed
    assert_equal_to_rounding(everything_learned(cut), everything_learned(whole))


def test_a_run_does_not_go_on_with_other_pictures_than_it_was_begun_on(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    train(server, town, run, 1, "steps=1")
    job = start_training(server, town, run, 2, "steps=2", f"target.path={town}/target_val")
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    assert f"{run}: this run was begun on other shards than those it is given now" in job.output()
    assert newest_step(run) == 1


@pytest.mark.parametrize("ranks", grid([1, 2], stay=[2]))
def test_adamw_goes_on_after_a_stop_with_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    words = ("optimizer.kind=adamw", "optimizer.weight_decay=0.01", "optimizer.warm_up_steps=3")
    words = (*words, "optimizer.warm_up_from=1e-3", "loader.workers=0")
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    train(server, town, whole, ranks, *words, "steps=3")
    for steps in (1, 3):
        train(server, town, cut, ranks, *words, f"steps={steps}")
    learned = everything_learned(whole)
    assert any("/optimizers/segmentation/" in name and name.endswith("exp_avg_sq") for name in learned)
    assert different_bits(everything_learned(cut), learned) == []


def test_a_run_that_goes_on_in_another_precision_says_so_once(server: RankServer, town: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    train(server, town, run, 2, "steps=1")
    for steps, told in ((2, ["r: precision no until here, bf16 from here on"]), (3, [])):
        words = training_words(town, run, f"steps={steps}")
        job = server.start(TRAIN, words, 2, {"ACCELERATE_MIXED_PRECISION": "bf16"})
        assert job.exit_codes() == [0, 0], job.output()
        assert [line for line in job.output().splitlines() if ": precision " in line] == told


def test_a_run_that_is_asked_for_fewer_steps_than_it_has_done_says_so(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    train(server, town, run, 1, "steps=2")
    finished = "r: finished already, at step 2"
    assert f"{finished}\n" in train(server, town, run, 1, "steps=2")
    assert f"{finished}, though only 1 were asked for now\n" in train(server, town, run, 1, "steps=1")
