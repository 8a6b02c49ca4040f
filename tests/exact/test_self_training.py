"""Neither ranks nor restarts nor kills show in what a teacher, its rule of trust and its student learn."""

import signal
from pathlib import Path

import pytest
import torch

from tests.exact.test_skipped_steps import train_spoiled
from tests.exact.trainings import (
    assert_equal_to_rounding,
    different_bits,
    everything_learned,
    newest_step,
    run_in,
    start_training,
    train,
    train_in_float64,
)
from tests.grids import grid
from tests.on_ranks import RankServer

pytestmark = pytest.mark.exact

STEPS = 3
METHODS = {
    "share": ("method.name=self_training",),
    "entropy": ("method.name=self_training", "method.teacher.trust=entropy"),
    "masked, share": ("method.name=masked_consistency",),
    "masked, entropy": ("method.name=masked_consistency", "method.teacher.trust=entropy"),
    "masked, entropy as weight": (
        "method.name=masked_consistency",
        "method.teacher.trust=entropy",
        "method.teacher.entropy_as=weight",
    ),
    "masked AdvEnt": ("method.name=masked_consistency", "method.host=advent"),
    "masked MinEnt": ("method.name=masked_consistency", "method.host=minent", "method.teacher.trust=entropy"),
}
WORDS = (
    # A network of the first steps is surer of nothing.
    "method.teacher.confidence=0.2",
    "method.teacher.entropy_floor=0",
    "method.teacher.entropy_memory=0.5",
    "method.teacher.margins=[0.1,0.2,0,0.1]",
    "method.masks.block=8",
    "target.crop=[40,32]",
    "source.crop=[40,32]",
    "target.mirror=true",
)


CUTS = {
    "two": ((STEPS, 2, 1),),
    "four": ((STEPS, 4, 0),),
    "two, then one": ((1, 2, 1), (STEPS, 1, 0)),
    "four, then two": ((1, 4, 0), (STEPS, 2, 1)),
    "two, then one, then four": ((1, 2, 0), (2, 1, 2), (STEPS, 4, 1)),
}
"""Starts of a run, one after the other: until which step, on how many ranks, with how many reading processes."""


@pytest.mark.parametrize(
    ("method", "cuts"),
    grid(
        [(one, cuts) for one in sorted(METHODS) for cuts in sorted(CUTS)], stay=[("masked, entropy", "two, then one")]
    ),
)
def test_neither_ranks_nor_restarts_on_other_ranks_nor_workers_show(
    server: RankServer, town: Path, tmp_path: Path, method: str, cuts: str
) -> None:
    words = (*METHODS[method], *WORDS)
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    train_in_float64(server, town, whole, 1, *words, f"steps={STEPS}")
    expected = everything_learned(whole)
    assert not torch.equal(expected["/teacher/conv1.weight"], expected["/segmentation/conv1.weight"])
    assert ("/entropies/histograms" in expected) == ("method.teacher.trust=entropy" in words)
    for steps, ranks, workers in CUTS[cuts]:
        train_in_float64(server, town, cut, ranks, *words, f"steps={steps}", f"loader.workers={workers}")
    assert_equal_to_rounding(everything_learned(cut), expected)


@pytest.mark.parametrize(
    ("method", "ranks"),
    grid([(method, ranks) for method in sorted(METHODS) for ranks in (1, 2)], stay=[("masked, entropy", 2)]),
)
def test_killed_and_started_again_it_ends_with_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, method: str, ranks: int
) -> None:
    words = (*METHODS[method], *WORDS, f"steps={STEPS}")
    whole, killed = run_in(tmp_path, "whole"), run_in(tmp_path, "killed")
    train(server, town, whole, ranks, *words)
    job = start_training(server, town, killed, ranks, *words)
    job.wait_until(lambda: newest_step(killed) >= 1)
    job.kill(ranks - 1, signal.SIGKILL)
    job.kill_all()
    job.exit_codes()
    train(server, town, killed, ranks, *words)
    assert different_bits(everything_learned(killed), everything_learned(whole)) == []


def changed_parts(run: Path, step: int) -> set[str]:
    """Return the networks of which a step changed anything."""
    names = different_bits(everything_learned(run, step), everything_learned(run, step - 1))
    return {name.split("/")[1] for name in names} & {"segmentation", "teacher", "entropies"}


def test_a_step_that_overflows_leaves_no_trace_in_the_teacher_nor_in_its_rule_of_trust(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    words = (*METHODS["entropy"], *WORDS, "steps=3")
    job = train_spoiled(server, town, run_in(tmp_path), "segmentation 2 2 1", 1024, *words)
    assert job.exit_codes() == [0, 0], job.output()
    assert changed_parts(run_in(tmp_path), 2) == set()
    assert changed_parts(run_in(tmp_path), 3) == {"segmentation", "teacher", "entropies"}


@pytest.mark.parametrize(
    ("changes", "learned"),
    [
        ("method.teacher.momentum=0.1", "/teacher/conv1.weight"),
        ("method.teacher.entropy_memory=0.1", "/entropies/histograms"),
        ("method.teacher.entropy_floor=1", "/segmentation/conv1.weight"),
        ("method.teacher.margins=[0.4,0,0,0]", "/segmentation/conv1.weight"),
        ("method.augmentation.jitter=0", "/segmentation/conv1.weight"),
        ("method.augmentation.blur=0", "/segmentation/conv1.weight"),
        ("method.masks.ratio=0.1", "/segmentation/conv1.weight"),
        ("method.mix=false", "/segmentation/conv1.weight"),
    ],
)
@pytest.mark.grid
def test_each_setting_is_part_of_what_is_learned(
    server: RankServer, town: Path, tmp_path: Path, changes: str, learned: str
) -> None:
    """Else the tests above would hold whatever it was."""
    words = (*METHODS["masked, entropy"], *WORDS, "steps=4")
    for name, more in (("plain", ()), ("changed", (changes,))):
        train(server, town, run_in(tmp_path, name), 1, *words, *more)
    assert learned in different_bits(
        everything_learned(run_in(tmp_path, "plain")), everything_learned(run_in(tmp_path, "changed"))
    )
