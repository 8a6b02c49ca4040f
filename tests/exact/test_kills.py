"""A training that is killed again and again ends with the bits of one that is not."""

import random
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_LOST_RANK
from esl_dist.files import PARTIAL_SUFFIX
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    everything_learned,
    losses,
    newest_step,
    run_in,
    start_training,
    train,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import PROJECT, Job, RankServer

pytestmark = pytest.mark.exact

STEPS_BY_KILLS = {3: 15, 12: 24}
STEPS, SAVES_HIT = 15, 2
START_SECONDS = 0.6
"""About as long as a start takes; some kills hit it."""
TRAINING_SECONDS = 0.2
"""A kill that does not hit the start comes at most so long after the first new checkpoint."""


@pytest.fixture(scope="module", params=grid([1, 2], stay=[2]))
def ranks(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


Uninterrupted = Callable[[int], Path]


@pytest.fixture(scope="module")
def uninterrupted(
    server: RankServer, town: Path, ranks: int, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    """Return a function that gives the run of so many steps."""

    @cache
    def trained(steps: int) -> Path:
        run = run_in(tmp_path_factory.mktemp("uninterrupted"))
        train(server, town, run, ranks, f"steps={steps}", "log_every=1")
        return run

    return trained


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(f"*{PARTIAL_SUFFIX}"))


def kill_at_random(job: Job, run: Path, moments: random.Random, last_step: int) -> None:
    """Kill a random rank in the start, or some steps after it, though not behind `last_step`; then the others."""
    begun, first = time.monotonic(), newest_step(run)
    in_start = moments.random() < 0.2
    delay = moments.uniform(0, START_SECONDS if in_start else TRAINING_SECONDS)
    if not in_start:
        job.wait_until(lambda: newest_step(run) > first)
        begun = time.monotonic()
    job.wait_until(lambda: time.monotonic() - begun >= delay or newest_step(run) >= last_step)
    rank = moments.randrange(len(job.processes))
    job.kill(rank)
    time.sleep(moments.uniform(0, 0.05))
    job.kill_all()
    # The others may have met the broken connection before.
    codes = job.exit_codes()
    assert codes[rank] == -signal.SIGKILL, job.output()
    assert set(codes) <= {-signal.SIGKILL, EXIT_LOST_RANK}, job.output()


@pytest.mark.parametrize("kills", grid(STEPS_BY_KILLS, stay=[3]))
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, ranks: int, uninterrupted: Uninterrupted, kills: int
) -> None:
    run, moments, last = run_in(tmp_path), random.Random(ranks), STEPS_BY_KILLS[kills]
    words, steps = (f"steps={last}", "log_every=1"), [0]
    for number in range(kills):
        job = start_training(server, town, run, ranks, *words)
        kill_at_random(job, run, moments, last * (number + 1) // (kills + 1))
        steps.append(newest_step(run))
    assert steps == sorted(steps), "a kill costs no checkpoint that was there before"
    # A kill after the start waits for one more checkpoint; how many more there are hangs on the machine.
    assert 0 < steps[-1] < last
    assert f"from step {steps[-1]} to {last}" in train(server, town, run, ranks, *words)
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted(last)))
    assert losses(run) == losses(uninterrupted(last)), "every step is in TensorBoard, once"


@pytest.mark.grid
def test_killed_as_soon_as_a_save_begins_it_ends_with_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, ranks: int, uninterrupted: Uninterrupted
) -> None:
    run, steps = run_in(tmp_path), f"steps={STEPS}"
    hits = tries = 0
    while hits < SAVES_HIT and tries < 2 * SAVES_HIT:
        tries += 1
        job = start_training(server, town, run, ranks, steps)
        first = newest_step(run)
        job.wait_until(lambda job=job, first=first: newest_step(run) > first)
        job.wait_until(lambda: is_saving(run))
        job.kill_all()
        assert set(job.exit_codes()) == {-signal.SIGKILL}, job.output()
        hits += is_saving(run)
    assert hits > 0
    train(server, town, run, ranks, steps)
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted(STEPS)))


STAGES = {
    "save_file": [1, 2],
    "torch.save": [1],
    "sha256_of_file": [2],
    "write_json": [1],
    "os.replace": [2, 3],
    "shutil.rmtree": [2],
}
"""After which call of a function that saves the process kills itself.

Between the files, behind the last, while checksums are computed, behind the manifest, behind the manifest of the next
save and behind its rename (`os.replace` renames manifests and folders), and while older checkpoints are pruned.
"""
TELLING_STAGES = {"torch.save": [1], "os.replace": [3], "shutil.rmtree": [2]}


@pytest.mark.parametrize("stages", grid([TELLING_STAGES, STAGES], stay=[TELLING_STAGES]), ids=["telling", "every"])
def test_killed_at_every_stage_of_a_save_it_ends_with_the_same_bits(
    server: RankServer,
    town: Path,
    tmp_path: Path,
    ranks: int,
    uninterrupted: Uninterrupted,
    stages: dict[str, list[int]],
) -> None:
    run = run_in(tmp_path)
    words = training_words(town, run, f"steps={STEPS}", "checkpoints.keep_newest=1")
    for function, calls in stages.items():
        for call in calls:
            before = newest_step(run)
            stage = [function, str(call), str(PROJECT / TRAIN)]
            job = server.start("tests/exact/kill_in_save.py", [*stage, *words], ranks)
            job.wait_for_end(0)
            job.kill_all()
            assert job.exit_codes()[0] == -signal.SIGKILL, f"{function}, call {call}: {job.output()}"
            assert newest_step(run) >= before, f"{function}, call {call}"
    assert 0 < newest_step(run) < STEPS
    train(server, town, run, ranks, *words)
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted(STEPS)))
