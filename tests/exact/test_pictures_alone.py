"""Where batch norm takes each picture by itself, neither ranks nor passes show in what is learned; no layer waits."""

import json
from pathlib import Path

import pytest

from tests.exact.trainings import (
    TRAIN,
    assert_equal_to_rounding,
    assert_same_bits,
    everything_learned,
    run_in,
    train,
    train_in_float64,
    training_words,
)
from tests.on_ranks import PROJECT, RankServer

pytestmark = pytest.mark.exact

BY_PICTURE = "network.normalise_over=picture"
STATISTICS = ("_mean", "_var", "num_batches_tracked")
"""Ends of the names of what each pass feeds, of which accumulation makes several."""


def test_ranks_and_accumulated_passes_learn_the_same(server: RankServer, town: Path, tmp_path: Path) -> None:
    for name, ranks, accumulate in (("whole", 1, 1), ("ranks", 2, 1), ("passes", 1, 4)):
        words = (BY_PICTURE, "steps=3", f"accumulate={accumulate}")
        train_in_float64(server, town, run_in(tmp_path, name), ranks, *words)
    whole, ranks, passes = (everything_learned(run_in(tmp_path, name)) for name in ("whole", "ranks", "passes"))
    for one in (whole, ranks, passes):
        for name in [name for name in one if "journal" in name]:
            del one[name]
    assert_equal_to_rounding(ranks, whole)
    learned = {name for name in whole if not name.endswith(STATISTICS)}
    assert_equal_to_rounding(*({name: one[name] for name in learned} for one in (passes, whole)))


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(server: RankServer, town: Path, tmp_path: Path) -> None:
    train(server, town, run_in(tmp_path, "whole"), 2, BY_PICTURE, "steps=3")
    for steps in (1, 3):
        train(server, town, run_in(tmp_path, "parts"), 2, BY_PICTURE, f"steps={steps}")
    assert_same_bits(*(everything_learned(run_in(tmp_path, name)) for name in ("whole", "parts")))


def test_the_statistics_of_a_pass_cross_the_network_at_once(server: RankServer, town: Path, tmp_path: Path) -> None:
    words = [BY_PICTURE, "steps=3", "log_every=100", "checkpoints.every=100"]
    program = [str(tmp_path / "sent"), str(PROJECT / TRAIN), *training_words(town, run_in(tmp_path), *words)]
    job = server.start("tests/exact/note_collectives.py", program, 2)
    assert job.exit_codes() == [0, 0], job.output()
    notes = [json.loads(line) for line in Path(f"{tmp_path}/sent.0").read_text().splitlines()]
    callers = [caller.rpartition(".")[2] for _, caller, _ in notes if "batch_norm" in caller]
    assert callers == ["finish_pass"] * (3 * 2)
