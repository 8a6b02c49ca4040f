"""How ranks on GPUs part: they wait for no kernels, and end with the documented words. Over gloo, as if over NCCL."""

import json
import os
import signal
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_DEFECT, EXIT_LOST_RANK, EXIT_USER_ERROR
from tests.grids import grid
from tests.on_ranks import Job, shared_server


def start(how: str, ranks: int, folder: Path, *more: str) -> Job:
    """Return ranks that do `how`."""
    os.mkfifo(gate := folder / "gate")
    state = {"ESL_DIST_STATE": str(folder / "state.json")}
    return shared_server().start("tests/ranks/as_on_nccl.py", [f"how={how}", f"gate={gate}", *more], ranks, state)


def codes_behind_the_gate(job: Job, folder: Path) -> list[int]:
    """Let all ranks go on, and return their exit codes."""
    # What is in a pipe that nobody has open is lost.
    with (folder / "gate").open("r+b", buffering=0) as gate:
        gate.write(bytes(len(job.processes)))
        return job.exit_codes(60)


def joined(job: Job) -> int:
    return job.output().count("joined\n")


ERRORS = [
    ("make a mistake", EXIT_USER_ERROR, "shard-000001.tar is gone"),
    (
        "run out of memory",
        EXIT_USER_ERROR,
        "the GPU's memory is full (2.00 GiB more were asked for, 1.20 GiB of 79.10 GiB free)",
    ),
    ("be wrong", EXIT_DEFECT, "CUDA error: device-side assert triggered: a kernel that began before this line"),
    (
        "lose a connection",
        EXIT_LOST_RANK,
        "the ranks cannot exchange tensors, though all of them answer: ncclRemoteError: socketPollConnect: connect "
        "returned Connection refused",
    ),
    ("share a GPU", EXIT_USER_ERROR, "ranks share one GPU, which NCCL does not allow (Duplicate GPU detected : "),
]


# One for each exit code.
@pytest.mark.parametrize(("how", "code", "words"), grid(ERRORS, stay=ERRORS[2:]))
def test_no_rank_waits_for_kernels_after_an_error(tmp_path: Path, how: str, code: int, words: str) -> None:
    job = start(how, 2, tmp_path)
    assert job.exit_codes(60) == [EXIT_LOST_RANK, code], job.output()
    assert words in job.output()
    assert "error (rank 0): waited " in job.output()
    assert ("Traceback" in job.output()) == (code == EXIT_DEFECT)
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["exit_code"], state["rank"]) == (code, 1)
    assert words in state["words"]


def test_a_killed_rank_is_named_by_those_that_wait_where_nothing_interrupts_them(tmp_path: Path) -> None:
    job = start("be killed", 3, tmp_path)
    job.wait_until(lambda: joined(job) == 3)
    job.kill(1)
    assert job.exit_codes(60) == [EXIT_LOST_RANK, -signal.SIGKILL, EXIT_LOST_RANK], job.output()
    errors = [line for line in job.output().splitlines() if "error (rank " in line]
    assert len(errors) == 2
    assert all("rank 1 (last at " in line and "killed, or stopped" in line for line in errors), errors


def test_ranks_that_all_stand_still_end_after_the_timeout_and_say_that_a_gpu_may_hang(tmp_path: Path) -> None:
    job = start("stand still", 2, tmp_path, "timeout_minutes=0.05")
    assert job.exit_codes(60) == [EXIT_LOST_RANK] * 2, job.output()
    assert "nobody gets on, and no rank can be singled out, as when a GPU of theirs hangs" in job.output()


def test_a_rank_that_is_only_stopped_is_not_taken_for_a_killed_one(tmp_path: Path) -> None:
    job = start("be stopped", 3, tmp_path)
    job.wait_until(lambda: joined(job) == 3)
    job.kill(1, signal.SIGSTOP)
    # Longer than a killed one is looked for.
    with pytest.raises(AssertionError, match="still runs"):
        job.wait_for_end(0, 3)
    job.kill(1, signal.SIGCONT)
    assert codes_behind_the_gate(job, tmp_path) == [0, 0, 0], job.output()


@pytest.mark.parametrize("how", ["end", "work on"])
def test_ranks_that_are_done_part_without_words_and_do_not_wait_for_one_that_works_on(tmp_path: Path, how: str) -> None:
    job = start(how, 3, tmp_path)
    assert codes_behind_the_gate(job, tmp_path) == [0, 0, 0], job.output()
    # Where the rank that keeps the store leaves first, c10d prints a trace of its own.
    assert "error (rank " not in job.output()
