"""A method of one file, put into the table by one line, has all that the project promises of the ones it comes with."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esl_dist.adaptation.methods import METHODS
from tests.exact import mean_teacher
from tests.exact.trainings import (
    IN_FLOAT64,
    TRAIN,
    assert_equal_to_rounding,
    different_bits,
    everything_learned,
    losses,
    newest_step,
    run_in,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

INTO_THE_TABLE = """
from esl_dist.adaptation.methods import METHODS
from tests.exact.mean_teacher import MeanTeacher
METHODS["mean_teacher"] = MeanTeacher()
"""
WORDS = ("method.name=mean_teacher", "method.target.main=0.5", "method.target.auxiliary=0.1", "log_every=1")
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def in_the_table() -> Iterator[None]:
    """Let this process read its checkpoints, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(METHODS, "mean_teacher", mean_teacher.MeanTeacher())
        yield


def start(server: RankServer, town: Path, run: Path, ranks: int, *words: str, float64: bool = False) -> Job:
    program = [str(PROJECT / IN_FLOAT64)] if float64 else []
    program += [str(PROJECT / TRAIN), *training_words(town, run, *WORDS, *words)]
    return server.start(CHANGED, [INTO_THE_TABLE, *program], ranks)


def train(server: RankServer, town: Path, run: Path, ranks: int, *words: str, float64: bool = False) -> dict[str, Any]:
    """Train to the end; returns all that is in the last checkpoint."""
    job = start(server, town, run, ranks, *words, float64=float64)
    assert job.exit_codes() == [0] * ranks, job.output()
    return everything_learned(run)


@pytest.fixture(scope="module")
def whole(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one rank that was never stopped."""
    run = run_in(tmp_path_factory.mktemp("whole"))
    train(server, town, run, 1, f"steps={STEPS}")
    return run


def test_it_is_short() -> None:
    assert len(Path(mean_teacher.__file__).read_text(encoding="utf-8").splitlines()) <= 60


def test_its_teacher_is_a_moving_average_that_the_checkpoint_holds(whole: Path) -> None:
    learned = everything_learned(whole)
    teacher, student = learned["/teacher/conv1.weight"], learned["/segmentation/conv1.weight"]
    assert not torch.equal(teacher, student)
    assert any("momentum_buffer" in name for name in learned)
    before = everything_learned(whole, STEPS - 1)["/teacher/conv1.weight"]
    expected = before + (student - before) * (1 - min(1 - 1 / (STEPS + 1), mean_teacher.MOMENTUM))
    torch.testing.assert_close(teacher, expected)
    assert losses(whole).keys() == {
        f"loss/{name}/{level}" for name in ("source_cross_entropy", "target_teacher") for level in ("main", "auxiliary")
    }


CUTS = {
    "two": ((STEPS, 2, 0),),
    "four": ((STEPS, 4, 0),),
    "two, one, four, then one": ((2, 2, 1), (3, 1, 0), (5, 4, 0), (STEPS, 1, 2)),
}
"""Starts of a run, one after the other: until which step, on how many ranks, with how many reading processes."""


@pytest.mark.parametrize("cuts", grid(sorted(CUTS), stay=[]))
def test_neither_ranks_nor_restarts_on_other_ranks_nor_workers_show_in_it(
    server: RankServer, town: Path, tmp_path: Path, cuts: str
) -> None:
    expected = train(server, town, run_in(tmp_path, "one"), 1, f"steps={STEPS}", float64=True)
    cut = run_in(tmp_path, "cut")
    for steps, ranks, workers in CUTS[cuts]:
        words = (f"steps={steps}", f"loader.workers={workers}")
        learned = train(server, town, cut, ranks, *words, float64=True)
    assert_equal_to_rounding(learned, expected)


@pytest.mark.parametrize("ranks", grid([1, 2], stay=[1]))
def test_killed_in_any_step_and_started_again_it_ends_with_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    expected = train(server, town, run_in(tmp_path, "whole"), ranks, f"steps={STEPS}")
    run = run_in(tmp_path, "killed")
    for step in (1, 3, 4):
        job = start(server, town, run, ranks, f"steps={STEPS}")
        job.wait_until(lambda step=step: newest_step(run) >= step)
        job.kill(ranks - 1, signal.SIGKILL)
        job.kill_all()
        job.exit_codes()
    assert different_bits(train(server, town, run, ranks, f"steps={STEPS}"), expected) == []


def test_its_draws_are_part_of_what_it_learns(server: RankServer, town: Path, tmp_path: Path, whole: Path) -> None:
    """Else the tests above would hold whatever it drew."""
    undrawn = INTO_THE_TABLE + "import tests.exact.mean_teacher as m\nm.changed = lambda image, generator: image\n"
    words = [str(PROJECT / TRAIN), *training_words(town, run_in(tmp_path), *WORDS, f"steps={STEPS}")]
    job = server.start(CHANGED, [undrawn, *words], 1)
    assert job.exit_codes() == [0], job.output()
    assert "/segmentation/conv1.weight" in different_bits(
        everything_learned(run_in(tmp_path)), everything_learned(whole)
    )
