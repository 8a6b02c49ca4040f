"""SIGTERM, SIGUSR1 or Ctrl-C to any one rank: all save the same step and leave, and the same command goes on."""

import json
import re
import signal
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import psutil
import pytest

from esl_dist.command_line import EXIT_INTERRUPTED, EXIT_STOPPED
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    assert_whole,
    everything_learned,
    newest_step,
    run_in,
    start_training,
    train,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

STEPS, ENDLESS = 12, 1000
KEEP = ("checkpoints.keep_newest=100", "log_every=1")
"""All checkpoints, none of them in the middle of an entry: the last step of a run always ends one."""
FIRST_SAVE = 3
"""A signal comes after the first regular checkpoint, so the next comes from the signal."""


@pytest.fixture(scope="module")
def uninterrupted(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that gives the run of so many ranks, with the checkpoints of all steps."""

    @cache
    def trained(ranks: int) -> Path:
        run = run_in(tmp_path_factory.mktemp("uninterrupted"))
        train(server, town, run, ranks, f"steps={STEPS}", *KEEP)
        return run

    return trained


def step_of_the_stop(job: Job, run: Path) -> int:
    """Make sure that every rank stopped as documented; returns the step that they name."""
    ranks = len(job.processes)
    assert job.exit_codes() == [EXIT_STOPPED] * ranks, job.output()
    named = [f" (rank {rank})" for rank in range(ranks)] if ranks > 1 else [""]
    messages = [
        re.search(rf"stopped{re.escape(name)}: {run.name}: saved at step (\d+); the same command", job.output())
        for name in named
    ]
    assert all(messages), job.output()
    steps = {int(message.group(1)) for message in messages if message is not None}
    assert len(steps) == 1, job.output()
    assert "Traceback" not in job.output()
    return steps.pop()


@pytest.mark.parametrize(
    ("number", "to"),
    grid(
        product([signal.SIGTERM, signal.SIGUSR1], [(1, 0), (2, 0), (2, 1)]),
        stay=[(signal.SIGTERM, (2, 1))],
    ),
)
def test_a_signal_to_one_rank_saves_and_stops_all_after_the_same_step(
    server: RankServer,
    town: Path,
    tmp_path: Path,
    uninterrupted: Callable[[int], Path],
    number: signal.Signals,
    to: tuple[int, int],
) -> None:
    """It goes to one of so many ranks."""
    ranks, to_rank = to
    run = run_in(tmp_path)
    job = start_training(server, town, run, ranks, f"steps={ENDLESS}", f"checkpoints.every={FIRST_SAVE}", *KEEP)
    job.wait_until(lambda: newest_step(run) == FIRST_SAVE)
    job.kill(to_rank, number)
    step = step_of_the_stop(job, run)
    assert FIRST_SAVE <= step <= STEPS - 1
    assert newest_step(run) == step
    assert_whole(run, step)
    assert f"from step {step} to" in train(server, town, run, ranks, f"steps={step + 1}", *KEEP)
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted(ranks), step + 1))


@pytest.mark.parametrize("number", grid([signal.SIGTERM, signal.SIGUSR1], stay=[signal.SIGTERM]))
def test_a_signal_to_all_processes_of_the_job_does_not_cost_its_loader_workers_the_step(
    server: RankServer, town: Path, tmp_path: Path, uninterrupted: Callable[[int], Path], number: signal.Signals
) -> None:
    run = run_in(tmp_path)
    words = [f"checkpoints.every={FIRST_SAVE}", *KEEP, "loader.workers=1"]
    job = start_training(server, town, run, 2, f"steps={ENDLESS}", *words)
    job.wait_until(lambda: newest_step(run) == FIRST_SAVE)
    ranks = [psutil.Process(process) for process in job.processes]
    workers = [worker for one in ranks for worker in one.children()]
    assert len(workers) == 4, "one a rank and domain"
    for process in [*workers, *ranks]:
        process.send_signal(number)
    step = step_of_the_stop(job, run)
    assert_whole(run, step)
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    train(server, town, run, 2, f"steps={step + 1}", *words)
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted(2), step + 1))


def start_signalled(
    server: RankServer, town: Path, run: Path, ranks: int, place: str, number: signal.Signals, *words: str
) -> Job:
    program = [place, number.name, str(PROJECT / TRAIN), *training_words(town, run, *words)]
    return server.start("tests/exact/signal_at_start.py", program, ranks)


@pytest.mark.parametrize(
    ("place", "ranks", "number"),
    grid(
        [
            (place, *job)
            for place in ("the rendezvous", "the devices", "the shards", "the checkpoint")
            for job in ((1, signal.SIGUSR1), (2, signal.SIGTERM))
        ],
        stay=[("the shards", 1, signal.SIGUSR1)],
    ),
)
def test_a_signal_during_the_start_stops_all_ranks_after_the_first_step(
    server: RankServer, town: Path, tmp_path: Path, place: str, ranks: int, number: signal.Signals
) -> None:
    run = run_in(tmp_path)
    assert step_of_the_stop(start_signalled(server, town, run, ranks, place, number, f"steps={ENDLESS}"), run) == 1
    assert step_of_the_stop(start_signalled(server, town, run, ranks, place, number, f"steps={ENDLESS}"), run) == 2
    assert_whole(run, 2)
    assert "from step 2 to 3" in train(server, town, run, ranks, "steps=3")


NOTICE = "interrupted: finishing the step and saving; press again to end at once"


@pytest.mark.parametrize(("ranks", "to_ranks"), grid([(1, (0,)), (2, (0, 1)), (2, (1,))], stay=[(2, (1,))]))
def test_ctrl_c_saves_and_ends_all_ranks_after_the_same_step(
    server: RankServer,
    town: Path,
    tmp_path: Path,
    uninterrupted: Callable[[int], Path],
    ranks: int,
    to_ranks: tuple[int, ...],
) -> None:
    """A terminal sends it to all. SIGTERM, which a launcher may send then, is no second Ctrl-C."""
    run = run_in(tmp_path)
    words = [f"checkpoints.every={FIRST_SAVE}", *KEEP, "loader.workers=1"]
    job = start_training(server, town, run, ranks, f"steps={ENDLESS}", *words)
    job.wait_until(lambda: newest_step(run) == FIRST_SAVE)
    workers = [worker for process in job.processes for worker in psutil.Process(process).children()]
    for process in [*workers, *(psutil.Process(job.processes[rank]) for rank in to_ranks)]:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    assert job.exit_codes() == [EXIT_INTERRUPTED] * ranks, job.output()
    step = newest_step(run)
    assert FIRST_SAVE <= step <= STEPS - 1
    assert job.output().count(NOTICE) == (1 if 0 in to_ranks else 0)
    for name in [f" (rank {rank})" for rank in range(ranks)] if ranks > 1 else [""]:
        said = f"interrupted{name}: r: saved at step {step}; the same command goes on from there\n"
        assert job.output().count(said) == 1, job.output()
    assert "Traceback" not in job.output()
    assert "error" not in job.output()
    assert_whole(run, step)
    assert f"from step {step} to {step + 1}" in train(server, town, run, ranks, f"steps={step + 1}", *words)
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted(ranks), step + 1))


HANGING_SAVE = """
import time
from esl_dist.runs import async_save
async_save.save_checkpoint = lambda *_: time.sleep(600)
"""


@pytest.mark.parametrize("ranks", grid([1, 2], stay=[2]))
def test_a_second_ctrl_c_ends_all_ranks_at_once_even_where_the_disk_does_not_answer(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    run = run_in(tmp_path)
    words = [HANGING_SAVE, str(PROJECT / TRAIN), *training_words(town, run, f"steps={ENDLESS}", "log_every=1")]
    job = server.start(CHANGED, words, ranks)
    job.wait_until(lambda: f"r: 1/{ENDLESS} steps" in job.output())
    for rank in range(ranks):
        job.kill(rank, signal.SIGINT)
    job.wait_until(lambda: NOTICE in job.output())
    for rank in range(ranks):
        job.kill(rank, signal.SIGINT)
    assert job.exit_codes(30) == [EXIT_INTERRUPTED] * ranks, job.output()
    assert "Traceback" not in job.output()
    assert newest_step(run) == 0


@pytest.mark.parametrize(
    ("ranks", "place"),
    grid([(1, "the shards"), (2, "the devices"), (2, "the checkpoint")], stay=[(2, "the checkpoint")]),
)
def test_ctrl_c_during_the_start_ends_without_a_step(
    server: RankServer, town: Path, tmp_path: Path, place: str, ranks: int
) -> None:
    """A person waits. A rank that was not interrupted hears of it from the one that was."""
    run = run_in(tmp_path)
    job = start_signalled(server, town, run, ranks, place, signal.SIGINT, f"steps={ENDLESS}")
    assert job.exit_codes()[-1] == EXIT_INTERRUPTED, job.output()
    assert "; the same command goes on from what is saved" in job.output()
    assert "Traceback" not in job.output()
    assert newest_step(run) == 0


def test_scoring_every_snapshot_ends_at_a_signal_at_once_and_goes_on_with_those_that_are_not_scored(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    run, scores = run_in(tmp_path), tmp_path / "scores.json"
    train(server, town, run, 1, "steps=4", "checkpoints.keep_every=1")
    words = ["mode=best", f"checkpoint={run}", f"data.path={town}/target_val", f"output={scores}", "workers=0"]
    slowly = ["scores", "0.5", str(PROJECT / "launch/evaluate.py"), *words]
    job = server.start("tests/exact/work_slowly.py", slowly, 2)
    job.wait_until(scores.exists)
    for rank in (0, 1):
        job.kill(rank, signal.SIGUSR1)
    assert job.exit_codes() == [-signal.SIGUSR1] * 2, job.output()
    assert "r, step 4: mIoU" not in job.output()
    job = server.start("launch/evaluate.py", words, 2)
    assert job.exit_codes() == [0, 0], job.output()
    assert "r, step 1: mIoU" not in job.output()
    assert "r, step 4: mIoU" in job.output()
    assert json.loads(scores.read_text())["snapshots"].keys() == {"1", "2", "3", "4"}
