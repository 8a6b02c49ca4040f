"""Settings that say how passes are computed, and not what: compiled, or with blocks computed again."""

from pathlib import Path

import pytest

from tests.exact.trainings import (
    IN_FLOAT64,
    ROUNDING,
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


def test_a_run_that_changes_to_blocks_computed_again_comes_to_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    train(server, town, run_in(tmp_path, "whole"), 2, "steps=2")
    train(server, town, run_in(tmp_path, "parts"), 2, "steps=1", "checkpoint_activations=true")
    train(server, town, run_in(tmp_path, "parts"), 2, "steps=2")
    assert_same_bits(*(everything_learned(run_in(tmp_path, name)) for name in ("whole", "parts")))


@pytest.mark.grid
def test_a_compiled_training_comes_to_the_weights_of_a_plain_one_on_two_ranks(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    train_in_float64(server, town, run_in(tmp_path, "plain"), 2, "steps=2")
    words = training_words(town, run_in(tmp_path, "compiled"), "steps=2", "compile=true")
    job = server.start(IN_FLOAT64, [str(PROJECT / TRAIN), *words], 2)
    # The compiler is slow where others compute.
    assert job.exit_codes(900) == [0, 0], job.output()
    assert job.output().count("compiled segmentation: ") == 2
    plain, compiled = (everything_learned(run_in(tmp_path, name)) for name in ("plain", "compiled"))
    for one in (plain, compiled):
        for name in [name for name in one if "journal" in name]:
            del one[name]
    assert_equal_to_rounding(compiled, plain, 10 * ROUNDING)


@pytest.mark.grid
def test_a_compiled_training_that_was_stopped_comes_to_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    for name, steps in (("whole", 2), ("parts", 1), ("parts", 2)):
        job = server.start(
            str(PROJECT / TRAIN), training_words(town, run_in(tmp_path, name), f"steps={steps}", "compile=true"), 1
        )
        assert job.exit_codes(900) == [0], job.output()
    assert_same_bits(*(everything_learned(run_in(tmp_path, name)) for name in ("whole", "parts")))
