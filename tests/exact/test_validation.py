"""Validations find what evaluation finds, on any number of ranks, and leave no trace in what is learned."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from esl_dist.command_line import EXIT_STOPPED, EXIT_USER_ERROR
from esl_dist.runs.checkpoints import checkpoint_folder, checkpoint_folders, step_of
from esl_dist.runs.validations import VALIDATIONS
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    entries,
    everything_learned,
    newest_step,
    run_in,
    train,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, RankServer

pytestmark = pytest.mark.exact

STEPS, RANKS = 4, 2
WORDS = (f"steps={STEPS}", "checkpoints.every=3", "checkpoints.keep_newest=9", "log_every=3")

FALLING = """
from esl_dist.training import validation
plain, number = validation.scores_of, [0]
def falling(*arguments):
    number[0] += 1
    return {**plain(*arguments), "miou": 1 / number[0]}
validation.scores_of = falling
"""
"""Makes the first validation of a start the best."""

FAILING = """
from esl_dist.errors import UserError
from esl_dist.training import validation
def failing(*arguments):
    raise UserError("a picture that cannot be read")
validation.scores_of = failing
"""

COUNTING_APART = """
import os
import torch
from esl_dist.training import loop
plain = loop.add_gradients
def counting_apart(*arguments):
    losses, counts = plain(*arguments)
    seen = torch.zeros(1 + int(os.environ["RANK"]), dtype=torch.int64)
    return loop.Contribution(losses, {**counts, "seen": seen})
loop.add_gradients = counting_apart
"""
"""Makes each rank count something of another shape."""


def validated(town: Path) -> tuple[str, ...]:
    return ("validate_every=2", f"validation.path={town}/target_val")


def found(run: Path) -> dict[str, Any]:
    steps: dict[str, Any] = json.loads((run / VALIDATIONS).read_text())["steps"]
    return steps


def steps_kept(run: Path) -> list[int]:
    return [step_of(folder) for folder in checkpoint_folders(run)]


def assert_same_validations(run: Path, other: Path) -> None:
    assert (run / VALIDATIONS).read_bytes() == (other / VALIDATIONS).read_bytes()
    shown, expected = entries(run), entries(other)
    of_validations = [name for name in expected if name.startswith("validation")]
    assert len(of_validations) > 3
    assert all(shown[name] == expected[name] for name in of_validations)


@pytest.fixture(scope="module")
def plain(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without validations."""
    run = run_in(tmp_path_factory.mktemp("plain"))
    train(server, town, run, RANKS, *WORDS)
    return run


@pytest.fixture(scope="module")
def whole(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with validations that was never stopped."""
    run = run_in(tmp_path_factory.mktemp("whole"))
    train(server, town, run, RANKS, *WORDS, *validated(town))
    return run


def test_a_validation_leaves_no_trace_in_what_is_learned(whole: Path, plain: Path) -> None:
    assert list(found(whole)) == ["2", "4"]
    assert_same_bits(everything_learned(whole), everything_learned(plain))
    assert_same_bits(everything_learned(whole, 3), everything_learned(plain, 3))


def test_figures_are_those_of_evaluation_and_of_the_pseudo_label_job(
    server: RankServer, town: Path, tmp_path: Path, whole: Path
) -> None:
    shards = f"{town}/target_val"
    for step, figures in found(whole).items():
        checkpoint, scores, labels = checkpoint_folder(whole, int(step)), tmp_path / f"{step}.json", tmp_path / step
        words = [f"checkpoint={checkpoint}", f"data.path={shards}", f"output={scores}", "workers=0"]
        assert server.run("launch/evaluate.py", words, 1) == [0], server.log.read_text()
        expected = json.loads(scores.read_text())
        assert figures["scores"] == {name: expected[name] for name in ("miou", "iou", "miou_over", "accuracy")}
        words = [f"checkpoint={checkpoint}", f"target.path={shards}", f"output={labels}", "workers=0"]
        assert server.run("launch/pseudo_label.py", words, 1) == [0], server.log.read_text()
        rows = json.loads((labels / "summary.json").read_text())["classes"].values()
        pixels = {key: sum(row[f"pixels_{key}"] for row in rows) for key in ("kept", "predicted")}
        assert figures["kept"] == pixels["kept"] / pixels["predicted"]


def test_curves_show_every_figure_at_its_step(whole: Path) -> None:
    curves, figures = entries(whole), found(whole)
    for name in ("entropy", "kept"):
        assert curves[f"validation/{name}"] == pytest.approx({int(step): one[name] for step, one in figures.items()})
    assert curves["validation/miou"] == pytest.approx(
        {int(step): one["scores"]["miou"] for step, one in figures.items()}
    )
    assert curves["validation_iou/road"][4] == pytest.approx(figures["4"]["scores"]["iou"]["road"])
    assert "validation/agreement" not in curves


@pytest.mark.parametrize("labels", grid([True, False], stay=[True]))
def test_any_number_of_ranks_finds_the_same_bits_of_a_checkpoint(
    server: RankServer, town: Path, tmp_path: Path, plain: Path, labels: bool
) -> None:
    """A finished run that is asked for validations later has its last step validated; without a path, on the target."""
    words = validated(town) if labels else validated(town)[:1]
    files = []
    for ranks in (1, 2, 4):
        run = run_in(tmp_path / str(ranks))
        shutil.copytree(plain, run)
        printed = train(server, town, run, ranks, *WORDS, *words)
        assert "finished already" in printed
        assert "mIoU" in printed or not labels
        files.append((run / VALIDATIONS).read_bytes())
    assert len(set(files)) == 1
    figures = json.loads(files[0])
    assert list(figures["steps"]) == [str(STEPS)]
    assert figures["best"] == (STEPS if labels else None)
    assert 0 < figures["steps"][str(STEPS)]["kept"] <= 1


@pytest.mark.parametrize(
    ("number", "step"),
    grid(
        [(signal.SIGTERM, 2), (signal.SIGTERM, STEPS), (signal.SIGKILL, 2), (signal.SIGKILL, STEPS)],
        stay=[(signal.SIGKILL, 2)],
    ),
)
def test_a_validation_that_is_cut_short_is_done_when_the_run_goes_on(
    server: RankServer, town: Path, tmp_path: Path, whole: Path, number: signal.Signals, step: int
) -> None:
    run, words = run_in(tmp_path), (*WORDS, *validated(town))
    program = [str(PROJECT / TRAIN), *training_words(town, run, *words)]
    job = server.start("tests/exact/in_a_validation.py", [str(int(number)), str(step), *program], RANKS)
    if number == signal.SIGTERM:
        assert job.exit_codes() == [EXIT_STOPPED] * RANKS, job.output()
        assert newest_step(run) == step
    else:
        assert job.exit_codes() == [-number] * RANKS
    printed = train(server, town, run, RANKS, *words)
    assert f"r: validation at step {step}: mIoU" in printed
    assert_same_bits(everything_learned(run), everything_learned(whole))
    assert_same_validations(run, whole)


@pytest.mark.grid
def test_a_step_after_which_all_stop_is_validated_when_the_run_goes_on(
    server: RankServer, town: Path, tmp_path: Path, whole: Path
) -> None:
    run, words = run_in(tmp_path), (*WORDS, *validated(town))
    program = [str(PROJECT / TRAIN), *training_words(town, run, *words)]
    job = server.start("tests/exact/stop_after.py", ["2", *program], RANKS)
    assert job.exit_codes() == [EXIT_STOPPED] * RANKS, job.output()
    if newest_step(run) == 2:
        assert not (run / VALIDATIONS).exists()
    train(server, town, run, RANKS, *words)
    assert_same_validations(run, whole)


def test_the_best_step_stays_and_is_named_after_restarts_too(server: RankServer, town: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for steps, kept in ((4, [2, 4]), (6, [2, 6])):
        words = ("checkpoints.every=1", "checkpoints.keep_newest=1", f"steps={steps}", *validated(town))
        program = [str(PROJECT / TRAIN), *training_words(town, run, *words)]
        job = server.start(CHANGED, [FALLING, *program], 1)
        assert job.exit_codes() == [0], job.output()
        assert steps_kept(run) == kept
        assert "best step    2, mIoU 100.0, " in job.output()
        assert f"checkpoint={checkpoint_folder(run, 2)} stays" in job.output()
    train(server, town, run, 1, "checkpoints.every=1", "checkpoints.keep_newest=1", "steps=7")
    assert steps_kept(run) == [2, 7]
    scores = tmp_path / "scores.json"
    words = ("mode=best", f"checkpoint={run}", f"data.path={town}/target_val", f"output={scores}", "workers=0")
    assert server.run("launch/evaluate.py", words, 1) == [0], server.log.read_text()
    assert list(json.loads(scores.read_text())["snapshots"]) == ["2", "7"]


def test_a_validation_that_fails_leaves_the_checkpoint_due_at_its_step(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    words = ("checkpoints.every=2", f"steps={STEPS}", *validated(town))
    job = server.start(CHANGED, [FAILING, str(PROJECT / TRAIN), *training_words(town, run, *words)], RANKS)
    assert job.exit_codes() == [EXIT_USER_ERROR] * RANKS, job.output()
    assert steps_kept(run) == [2]
    printed = train(server, town, run, RANKS, *words)
    assert "r: validation at step 2: mIoU" in printed
    assert list(found(run)) == ["2", "4"]


def test_ranks_that_count_something_else_are_told_in_the_first_step(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    words = training_words(town, run_in(tmp_path), f"steps={STEPS}")
    job = server.start(CHANGED, [COUNTING_APART, str(PROJECT / TRAIN), *words], RANKS)
    assert job.exit_codes() == [EXIT_USER_ERROR] * RANKS, job.output()
    assert "ranks [1] were started with another set of counts in a step than rank 0" in job.output()
