"""A process that reads and is killed ends its program at once and with the cause, and with it the other ranks."""

import time
from itertools import product
from pathlib import Path

import psutil
import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from tests.exact.trainings import newest_step, run_in, start_training
from tests.grids import grid
from tests.on_ranks import RankServer

pytestmark = pytest.mark.exact

CAUSE = "was killed, perhaps because memory ran out: use fewer than loader.workers=1, or a smaller batch"
SECONDS = 20
"""Far less than the 30 that the processes once took to end, and than timeout_minutes."""


@pytest.mark.parametrize(("ranks", "domain"), grid(product([1, 2], [0, 1]), stay=[(2, 1)]))
def test_a_killed_process_that_reads_ends_the_training(
    server: RankServer, town: Path, tmp_path: Path, ranks: int, domain: int
) -> None:
    run = run_in(tmp_path)
    job = start_training(server, town, run, ranks, "steps=100000", "loader.workers=1")
    job.wait_until(lambda: newest_step(run) > 0)
    readers = [psutil.Process(process).children() for process in job.processes]
    assert [len(one) for one in readers] == [2] * ranks, "one a domain"
    readers[-1][domain].kill()
    killed = time.monotonic()
    assert job.exit_codes() == [EXIT_LOST_RANK] * (ranks - 1) + [EXIT_USER_ERROR], job.output()
    assert time.monotonic() - killed < SECONDS
    errors = [line for line in job.output().splitlines() if "error" in line]
    assert len(errors) == ranks, job.output()
    assert all(f"a process that reads {town}/" in line and line.endswith(CAUSE) for line in errors)
    assert "Traceback" not in job.output()
    assert not any(reader.is_running() for one in readers for reader in one)
