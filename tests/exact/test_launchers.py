"""Under the launchers: torchrun and `accelerate launch` end, restart and stop their ranks in their own ways.

Two torchruns that meet at an address of this machine are two machines to the ranks.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.exact.launched import Launch, Launched
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    assert_whole,
    everything_learned,
    newest_step,
    run_in,
    train,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, RankServer, free_port
from tests.programs import TORCHRUN

pytestmark = pytest.mark.exact

STEPS = 12
RESTARTING = ("torch.distributed.run", "--standalone", "--max_restarts", "1", "--nproc_per_node")


def test_a_single_rank_of_a_launcher_trains_to_its_end_without_a_trace(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    """As `torchrun --nproc_per_node 1` starts it: it has ranks to join, and none beside it."""
    numbers = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "true"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    job = server.start(TRAIN, training_words(town, run_in(tmp_path), "steps=1"), 1, {**numbers, **meeting})
    assert job.exit_codes() == [0], job.output()
    assert "finished at step 1" in job.output()
    assert "Traceback" not in job.output()


@pytest.mark.parametrize("lost", grid([0, 1], stay=[0]))
def test_a_rank_that_was_killed_is_named_before_torchrun_ends_the_others(
    launch: Launch, town: Path, tmp_path: Path, lost: int
) -> None:
    run = run_in(tmp_path)
    launched = launch(TORCHRUN, training_words(town, run, "steps=1000"))
    launched.wait_until(lambda: newest_step(run) > 0)
    launched.ranks()[lost].kill()
    assert launched.exit_code() == 1
    assert f"error (rank {1 - lost}): rank {lost} (last at " in launched.output(), launched.output()
    assert "does not answer any more: killed, or stopped" in launched.output()


@pytest.mark.grid
def test_ranks_that_torchrun_starts_again_go_on_from_the_last_checkpoint_to_the_same_bits(
    server: RankServer, launch: Launch, town: Path, tmp_path: Path
) -> None:
    """The store outlives the first attempt, and with it the last words of its ranks."""
    run, uninterrupted = run_in(tmp_path), run_in(tmp_path, "uninterrupted")
    launched = launch(RESTARTING, training_words(town, run, f"steps={STEPS}"))
    launched.wait_until(lambda: newest_step(run) > 0)
    launched.ranks()[1].kill()
    assert launched.exit_code() == 0, launched.output()
    assert f"to {STEPS}" in launched.output()
    train(server, town, uninterrupted, 2, f"steps={STEPS}")
    assert_same_bits(everything_learned(run), everything_learned(uninterrupted))


@pytest.mark.parametrize("number", grid([signal.SIGTERM, signal.SIGUSR1], stay=[]))
def test_a_signal_to_the_launched_processes_saves_what_was_done(
    launch: Launch, town: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM goes to torchrun alone, as a cluster sends it; of a SIGUSR1 it would die, so that goes to the ranks."""
    run = run_in(tmp_path)
    launched = launch(TORCHRUN, training_words(town, run, "steps=1000", "checkpoints.every=3"))
    launched.wait_until(lambda: newest_step(run) > 0)
    targets = [launched.process] if number == signal.SIGTERM else launched.process.children(recursive=True)
    for process in targets:
        process.send_signal(number)
    assert launched.exit_code() != 0
    step = newest_step(run)
    for rank in (0, 1):
        assert f"stopped (rank {rank}): {run.name}: saved at step {step}; the same command" in launched.output()
    assert_whole(run, step)


AS_ANOTHER_LAUNCHER = """
import os, sys
from esl_dist.ranks import session
names = dict(pair.split("=") for pair in sys.argv.pop(1).split(","))
for old in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
    value = os.environ.pop(old)
    if old in names:
        os.environ[names[old]] = value
plain = session.Accelerator
def told(*arguments, **options):
    sys.stderr.write(f"local rank {os.environ['LOCAL_RANK']} of {os.environ['LOCAL_WORLD_SIZE']}\\n")
    return plain(*arguments, **options)
session.Accelerator = told
"""


AS_KUBEFLOW, AS_MPI = "RANK=RANK,WORLD_SIZE=WORLD_SIZE", "RANK=PMI_RANK,WORLD_SIZE=PMI_SIZE"


@pytest.mark.parametrize("names", grid([AS_KUBEFLOW, AS_MPI], stay=[AS_MPI]))
def test_ranks_without_a_number_on_their_machine_train_to_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, names: str
) -> None:
    """As Kubeflow's PyTorchJob and MPI's process managers start them."""
    run, numbered = run_in(tmp_path), run_in(tmp_path, "numbered")
    words = [AS_ANOTHER_LAUNCHER, names, str(PROJECT / TRAIN), *training_words(town, run, "steps=3")]
    job = server.start(CHANGED, words, 2)
    assert job.exit_codes() == [0, 0], job.output()
    for rank in (0, 1):
        assert f"local rank {rank} of 2\n" in job.output()
    train(server, town, numbered, 2, "steps=3")
    assert_same_bits(everything_learned(run), everything_learned(numbered))


def nodes(launch: Launch, words: Sequence[str]) -> list[Launched]:
    """Start a torchrun with one rank on each of two machines."""
    rendezvous = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}")
    launcher = ("torch.distributed.run", "--nproc_per_node", "1", *rendezvous, "--nnodes")
    return [launch(launcher, words) for _ in range(2)]


@pytest.mark.grid
def test_two_machines_come_to_the_same_bits_as_two_ranks_on_one(
    server: RankServer, launch: Launch, town: Path, tmp_path: Path
) -> None:
    run, on_one = run_in(tmp_path), run_in(tmp_path, "on_one")
    started = nodes(launch, training_words(town, run, f"steps={STEPS}"))
    for node in started:
        assert node.exit_code() == 0, node.output()
    train(server, town, on_one, 2, f"steps={STEPS}")
    assert_same_bits(everything_learned(run), everything_learned(on_one))


@pytest.mark.grid
def test_a_rank_that_was_killed_is_named_by_that_on_the_other_machine(
    launch: Launch, town: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    started = nodes(launch, training_words(town, run, "steps=1000"))
    started[0].wait_until(lambda: newest_step(run) > 0)
    by_rank = {rank: node for node in started for rank in node.ranks()}
    by_rank[1].ranks()[1].kill()
    said = "does not answer any more: killed, or stopped"
    by_rank[0].wait_until(lambda: said in by_rank[0].output())
    [line] = [line for line in by_rank[0].output().splitlines() if said in line]
    assert "error (rank 0): rank 1 (last at " in line
