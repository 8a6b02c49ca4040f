"""What TensorBoard shows of a run that was stopped between two entries is what it shows of an uninterrupted one."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from esl_dist import config as settings
from esl_dist.command_line import EXIT_STOPPED
from esl_dist.runs.checkpoints import checkpoint_folder, load_checkpoint, save_checkpoint
from tests.exact.trainings import (
    IN_FLOAT64,
    LAST_PLACE,
    TRAIN,
    entries,
    newest_step,
    run_in,
    train_in_float64,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import PROJECT, RankServer

pytestmark = pytest.mark.exact

STEPS, LOG_EVERY = 10, 5
STOPS = (2, 3, 5, 8)
"""Twice in one interval, at an entry, and in the next interval."""
WORDS = (f"steps={STEPS}", f"log_every={LOG_EVERY}", "optimizer.learning_rate=0.002", "checkpoints.every=100")


@pytest.fixture(scope="module")
def uninterrupted(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that gives the run of so many ranks."""

    @cache
    def trained(ranks: int) -> Path:
        run = run_in(tmp_path_factory.mktemp("uninterrupted"))
        train_in_float64(server, town, run, ranks, *WORDS)
        return run

    return trained


def stop_after(server: RankServer, town: Path, run: Path, step: int, ranks: int) -> None:
    program = [str(PROJECT / "tests/exact/stop_after.py"), str(step), str(PROJECT / TRAIN)]
    job = server.start(IN_FLOAT64, [*program, *training_words(town, run, *WORDS)], ranks)
    assert job.exit_codes() == [EXIT_STOPPED] * ranks, job.output()
    assert newest_step(run) == step


def computed(run: Path) -> dict[str, dict[int, float]]:
    """Return all that TensorBoard shows of a run but its speed and its memory."""
    return {name: values for name, values in entries(run).items() if not name.startswith(("speed/", "memory/"))}


@pytest.mark.parametrize(
    ("ranks", "relative"),
    grid([((1, 1), 0), ((2, 2), 0), ((1, 2), LAST_PLACE)], stay=[((1, 1), 0)]),
    ids=["1 rank", "2 ranks", "1 rank or 2"],
)
def test_the_curves_of_a_run_that_was_stopped_between_entries_are_those_of_an_uninterrupted_one(
    server: RankServer,
    town: Path,
    tmp_path: Path,
    uninterrupted: Callable[[int], Path],
    ranks: tuple[int, int],
    relative: float,
) -> None:
    run = run_in(tmp_path)
    for number, step in enumerate(STOPS):
        stop_after(server, town, run, step, ranks[number % 2])
    train_in_float64(server, town, run, ranks[0], *WORDS)
    found, expected = computed(run), computed(uninterrupted(ranks[0]))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert list(values) == [LOG_EVERY, STEPS]
        assert found[name] == pytest.approx(values, rel=relative, abs=0), name


def test_a_checkpoint_of_a_program_that_kept_no_sums_begins_the_interval_anew(
    server: RankServer, town: Path, tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    run = run_in(tmp_path)
    stop_after(server, town, run, LOG_EVERY - 1, 1)
    saved = load_checkpoint(checkpoint_folder(run, LOG_EVERY - 1))
    without = {key: value for key, value in saved.training.items() if key != "journal"}
    assert without.keys() < saved.training.keys()
    save_checkpoint(run, replace(saved, training=without), settings.Checkpoints())
    train_in_float64(server, town, run, 1, *WORDS)
    found, expected = computed(run), computed(uninterrupted(1))
    assert all(list(values) == [LOG_EVERY, STEPS] for values in found.values())
    for name in found:
        assert found[name][STEPS] == expected[name][STEPS], name
    differing = {name for name in found if found[name][LOG_EVERY] != expected[name][LOG_EVERY]}
    assert differing == {name for name in found if name.startswith("loss/")}
