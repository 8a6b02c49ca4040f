"""Free memory is what the machine has and what the limits of control groups leave; what is short is named."""

import errno
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from esl_dist import machine
from esl_dist.machine import (
    free_memory,
    left_by_limits,
    processors_by_limits,
    shortage,
    usable_processors,
)

SLURM = "/slurm/job_7/step_0"
OTHERS = "12:cpu,cpuacct:/slurm\n1:name=systemd:/user\n"


def within(left: Callable[[], float], own_groups: str, root: Path) -> float:
    """Return what the control groups below `root` leave a process that is in some of them."""
    with pytest.MonkeyPatch.context() as patch:
        (root / "own_groups").write_text(own_groups)
        patch.setattr(machine, "OWN_GROUPS", root / "own_groups")
        patch.setattr(machine, "GROUPS", root)
        return left()


def limit_version_2(folder: Path, most: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {files}\ninactive_file {2 * files}\n")


def limit_version_1(folder: Path, most: int, used: int, files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    counts = f"active_file 1\ninactive_file 1\ntotal_active_file {files}\ntotal_inactive_file {2 * files}\n"
    (folder / "memory.stat").write_text(counts)


def test_the_narrowest_limit_of_the_groups_above_counts_without_pages_of_files(tmp_path: Path) -> None:
    limit_version_2(tmp_path / f".{SLURM}", "max", 600)
    limit_version_2(tmp_path / "slurm/job_7", "1000", 700, files=50)
    limit_version_2(tmp_path / "slurm", "9000", 2000)
    assert within(left_by_limits, f"0::{SLURM}\n", tmp_path) == 1000 - 700 + 150
    limit_version_2(tmp_path / f".{SLURM}", "800", 600)
    assert within(left_by_limits, f"0::{SLURM}\n", tmp_path) == 200


def test_a_container_sees_its_own_limit_at_the_root(tmp_path: Path) -> None:
    limit_version_2(tmp_path, "1000", 400)
    assert within(left_by_limits, "0::/\n", tmp_path) == 600
    limit_version_1(tmp_path / "memory", 900, 400, files=10)
    assert within(left_by_limits, "4:memory:/docker/not_to_be_seen_here\n", tmp_path) == 530


def test_a_limit_of_version_1_beside_an_empty_version_2_counts(tmp_path: Path) -> None:
    limit_version_1(tmp_path / f"memory{SLURM}", 900, 400, files=10)
    assert within(left_by_limits, f"{OTHERS}4:memory:{SLURM}\n0::/\n", tmp_path) == 530


@pytest.mark.parametrize("groups", ["", OTHERS, f"0::{SLURM}\n", "4:memory:/\n"])
def test_without_a_limit_it_is_the_memory_of_the_machine(
    groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert within(left_by_limits, groups, tmp_path) == math.inf
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "absent")
    assert 0 < free_memory() <= psutil.virtual_memory().total


def test_the_smaller_of_both_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "left_by_limits", lambda: 7)
    assert free_memory() == 7


def test_processors_are_those_of_the_affinity_and_of_the_narrowest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm/job_7").mkdir(parents=True)
    (tmp_path / "slurm/job_7/cpu.max").write_text("150000 100000\n")
    (tmp_path / "slurm/cpu.max").write_text("max 100000\n")
    assert within(processors_by_limits, f"0::{SLURM}\n", tmp_path) == 1.5
    assert within(processors_by_limits, "0::/user\n", tmp_path) == math.inf
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 3, 5})
    monkeypatch.setattr(machine, "processors_by_limits", lambda: math.inf)
    assert usable_processors() == 3
    monkeypatch.setattr(machine, "processors_by_limits", lambda: 0.5)
    assert usable_processors() == 1


def test_a_quota_of_version_1_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu/slurm").mkdir(parents=True)
    (tmp_path / "cpu/slurm/cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu/slurm/cpu.cfs_period_us").write_text("100000\n")
    assert within(processors_by_limits, "12:cpu,cpuacct:/slurm\n", tmp_path) == 2
    (tmp_path / "cpu/slurm/cpu.cfs_quota_us").write_text("-1\n")
    assert within(processors_by_limits, "12:cpu,cpuacct:/slurm\n", tmp_path) == math.inf


IN_A_PROCESS = """
import resource, sys
from esl_dist.machine import allow_open_files
soft, hard, further = (int(word) for word in sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    allow_open_files(further, "to read s with workers=2")
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_as_many_open_files_as_possible_are_allowed_and_fewer_than_needed_are_named() -> None:
    def allowed(*numbers: int) -> list[str]:
        words = [sys.executable, "-c", IN_A_PROCESS, *map(str, numbers)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()

    assert allowed(30, 200, 100) == ["200"]
    (message, limit) = allowed(30, 200, 400)
    assert limit == "200"
    pattern = (
        r"UserError too few open files are allowed to read s with workers=2: 200, and 4\d\d are needed; raise the limit"
    )
    assert re.match(pattern, message), message


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ETOOMANYREFS, "Too many references: cannot splice"), "ulimit -n"),
        (RuntimeError("failed to bind. code: -24, name: EMFILE, message: too many open files"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "fs.file-max"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)
def test_what_there_is_too_little_of_is_told_with_a_remedy(error: Exception, remedy: str) -> None:
    assert remedy in str(shortage(error))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("shapes differ"), KeyError()])
def test_other_errors_tell_of_no_shortage(error: Exception) -> None:
    assert shortage(error) is None
