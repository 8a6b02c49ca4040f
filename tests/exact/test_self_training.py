"""Neither ranks nor restarts nor kills show in what a teacher, its rule of trust and its student learn."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.exact.trainings import (
    assert_equal_to_rounding,
    different_bits,
    everything_learned,
    losses,
    newest_step,
    run_in,
    start_training,
    train,
    train_in_float64,
)
from tests.grids import grid
from tests.on_ranks import RankServer

pytestmark = pytest.mark.exact

STEPS = 5
METHODS = {
    "share": ("method.name=self_training",),
    "entropy": ("method.name=self_training", "method.teacher.trust=entropy", "method.teacher.entropy_memory=0.5"),
    "masked": (
        "method.name=masked_consistency",
        "method.teacher.trust=entropy",
        "method.teacher.entropy_as=weight",
        "method.masks.block=8",
    ),
    "masked_advent": ("method.name=masked_consistency", "method.host=advent", "method.masks.block=8"),
}
# A network of the first steps is confident of nothing else.
WORDS = ("method.teacher.confidence=0.2", "method.teacher.margins=[0.1,0.2,0,0.1]", f"steps={STEPS}")


@pytest.mark.parametrize("method", grid(sorted(METHODS), stay=["entropy"]))
def test_neither_ranks_nor_restarts_on_other_ranks_nor_workers_show(
    server: RankServer, town: Path, tmp_path: Path, method: str
) -> None:
    words = (*METHODS[method], *WORDS)
    train_in_float64(server, town, run_in(tmp_path, "one"), 1, *words)
    expected = everything_learned(run_in(tmp_path, "one"))
    assert not torch.equal(expected["/teacher/conv1.weight"], expected["/segmentation/conv1.weight"])
    train_in_float64(server, town, run_in(tmp_path, "four"), 4, *words)
    assert_equal_to_rounding(everything_learned(run_in(tmp_path, "four")), expected)
    cut = run_in(tmp_path, "cut")
    for steps, ranks, workers in ((2, 2, 1), (3, 1, 0), (STEPS, 2, 1)):
        train_in_float64(server, town, cut, ranks, *words, f"steps={steps}", f"loader.workers={workers}")
    assert_equal_to_rounding(everything_learned(cut), expected)
