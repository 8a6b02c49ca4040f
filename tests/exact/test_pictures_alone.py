"""Where batch norm takes each picture by itself, neither ranks nor passes show in what is learned; no layer waits."""

import json
from pathlib import Path

import pytest

from tests.exact.trainings import (
    IN_FLOAT64,
    TRAIN,
    assert_equal_to_rounding,
    assert_same_bits,
    everything_learned,
    run_in,
    train_in_float64,
    training_words,
)
from tests.on_ranks import PROJECT, RankServer

pytestmark = pytest.mark.exact

BY_PICTURE = "network.normalise_over=picture"
STATISTICS = ("_mean", "_var", "num_batches_tracked")
"""Ends of the names of what each pass feeds, of which accumulation makes several."""


@pytest.fixture(scope="module")
def on_two_ranks(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of two steps on two ranks, in float64, beside notes of what rank 0 sent (`sent.0`)."""
    run = run_in(tmp_path_factory.mktemp("pictures"))
    words = training_words(town, run, BY_PICTURE, "steps=2")
    program = [str(run.parents[1] / "sent"), str(PROJECT / IN_FLOAT64), str(PROJECT / TRAIN), *words]
    job = server.start("tests/exact/note_collectives.py", program, 2)
    assert job.exit_codes() == [0, 0], job.output()
    return run


def test_ranks_and_accumulated_passes_learn_the_same(
    server: RankServer, town: Path, tmp_path: Path, on_two_ranks: Path
) -> None:
    for accumulate in (1, 4):
        words = (BY_PICTURE, "steps=2", f"accumulate={accumulate}")
        train_in_float64(server, town, run_in(tmp_path, f"passes {accumulate}"), 1, *words)
    runs = (run_in(tmp_path, "passes 1"), on_two_ranks, run_in(tmp_path, "passes 4"))
    whole, ranks, passes = map(everything_learned, runs)
    for one in (whole, ranks, passes):
        for name in [name for name in one if "journal" in name]:
            del one[name]
    assert_equal_to_rounding(ranks, whole)
    learned = {name for name in whole if not name.endswith(STATISTICS)}
    assert_equal_to_rounding(*({name: one[name] for name in learned} for one in (passes, whole)))


@pytest.mark.grid
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, on_two_ranks: Path
) -> None:
    run = run_in(tmp_path)
    for steps in (1, 2):
        train_in_float64(server, town, run, 2, BY_PICTURE, f"steps={steps}")
    assert_same_bits(*map(everything_learned, (run, on_two_ranks)))


def test_the_statistics_of_a_pass_cross_the_network_at_once(on_two_ranks: Path) -> None:
    notes = [json.loads(line) for line in (on_two_ranks.parents[1] / "sent.0").read_text().splitlines()]
    callers = [caller.rpartition(".")[2] for _, caller, _ in notes if "batch_norm" in caller]
    assert callers == ["finish_pass"] * (2 * 2)
