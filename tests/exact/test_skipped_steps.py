"""Scaled losses: an overflow on one rank makes all networks skip the step on all ranks, and not without end."""

from pathlib import Path

import pytest
from torch import Tensor

from esl_dist.command_line import EXIT_USER_ERROR
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    entries,
    everything_learned,
    newest_step,
    run_in,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

STEPS = 4
LOSSES = 6
"""Source and target cross-entropies and the discriminators' losses, at two levels each."""
WORDS = ("log_every=1", "checkpoints.keep_newest=10")


def train_spoiled(server: RankServer, town: Path, run: Path, where: str, scale: int, *words: str) -> Job:
    """Train on two ranks; `where` is WHAT FIRST LAST RANK of `spoil_gradients.py`."""
    program = [*where.split(), str(scale), str(PROJECT / TRAIN), *training_words(town, run, *WORDS, *words)]
    return server.start("tests/exact/spoil_gradients.py", program, 2)


def learned_by_steps(run: Path, step: int) -> dict[str, Tensor]:
    """Return what a step changes: weights, the statistics of batch norm, and the states of optimisers."""
    parts = ("/segmentation", "/discriminators", "/optimizers")
    everything = everything_learned(run, step)
    kept = [name for name in everything if name.startswith(parts) and isinstance(everything[name], Tensor)]
    return {name: everything[name] for name in kept}


def changed(run: Path, step: int) -> set[str]:
    """Return the networks of which a step changed any tensor."""
    before, after = learned_by_steps(run, step - 1), learned_by_steps(run, step)
    return {name.split("/")[1] for name in before if not before[name].equal(after[name])}


# Batch norm hands infinite activations and gradients of the segmentation network on to the other rank; those of
# discriminators stay. Statistics that are infinite are so on both.
@pytest.mark.parametrize(
    ("what", "rank"),
    grid(
        [("segmentation", 1), ("activations", 1), ("discriminators", 0), ("discriminators", 1), ("statistics", 1)],
        stay=[("activations", 1), ("discriminators", 0), ("statistics", 1)],
    ),
)
def test_an_overflow_makes_every_network_skip_on_all_and_leaves_no_trace(
    server: RankServer, town: Path, tmp_path: Path, what: str, rank: int
) -> None:
    run = run_in(tmp_path)
    job = train_spoiled(server, town, run, f"{what} 3 3 {rank}", 1024, f"steps={STEPS}")
    assert job.exit_codes() == [0, 0], job.output()
    assert changed(run, 3) == set()
    assert changed(run, 2) == changed(run, 4) == {"segmentation", "discriminators", "optimizers"}
    assert [everything_learned(run, step)["/scaler/scale"] for step in (2, 3, 4)] == [1024, 512, 512]
    shown = entries(run)
    assert shown["precision/skipped_steps"] == {1: 0, 2: 0, 3: 1, 4: 0}
    losses = [values for name, values in shown.items() if name.startswith("loss/")]
    assert len(losses) == LOSSES
    assert all(values.keys() == {1, 2, 4} for values in losses), "nothing was learned from those of step 3"


def test_a_step_skipped_at_a_loss_scale_below_1_ends_the_training_on_every_rank(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    job = train_spoiled(server, town, run, "discriminators 2 8 1", 4, "steps=8")
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    assert "Traceback" not in job.output()
    for rank in range(2):
        expected = f"error (rank {rank}): r, step 5: gradients or batch-norm statistics are no finite numbers, even at "
        assert job.output().count(expected) == 1, job.output()
    assert newest_step(run) == STEPS


def test_a_continued_training_has_the_loss_scale_of_an_uninterrupted_one(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    spoiled = "discriminators 2 2 0"
    for run, where, steps in ((whole, spoiled, 4), (cut, spoiled, 3), (cut, "none 0 0 0", 4)):
        job = train_spoiled(server, town, run, where, 1024, f"steps={steps}")
        assert job.exit_codes() == [0, 0], job.output()
    expected = everything_learned(whole)
    assert (expected["/scaler/scale"], expected["/scaler/_growth_tracker"]) == (512, 2)
    assert_same_bits(everything_learned(cut), expected)


def test_discriminators_that_are_no_numbers_are_not_saved_though_the_losses_still_are(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    """Their gradients are not scaled, so an infinite one becomes a weight; the losses of that step came before it."""
    run = run_in(tmp_path)
    job = train_spoiled(server, town, run, "discriminators 2 2 0", 0, f"steps={STEPS}")
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    for rank in range(2):
        assert f"error (rank {rank}): r: by step 2 main.0.weight is no finite number any more" in job.output()
    assert newest_step(run) == 1


BROKEN = {"statistics": "bn1.running_mean", "losses": "the loss source_cross_entropy/main"}
ANEW = "start a run of another name with a lower optimizer.learning_rate"


@pytest.mark.parametrize(
    ("what", "scale", "advice"),
    [
        ("statistics", 0, ANEW),
        ("losses", 1024, f"go on with mixed precision bf16, or {ANEW}"),
        ("losses", 0, ANEW),
    ],
)
def test_statistics_and_losses_that_are_no_numbers_end_the_training_before_a_save_though_gradients_are_finite(
    server: RankServer, town: Path, tmp_path: Path, what: str, scale: int, advice: str
) -> None:
    """Passes in training do not look at running statistics: neither losses nor gradients tell of them."""
    run = run_in(tmp_path)
    words = [f"steps={STEPS}", "network.batch_norm=shared"]
    job = train_spoiled(server, town, run, f"{what} 2 2 0", scale, *words)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    for rank in range(2):
        expected = f"error (rank {rank}): r: by step 2 {BROKEN[what]} is no finite number any more; {advice}"
        assert expected in job.output()
    assert newest_step(run) == 1
