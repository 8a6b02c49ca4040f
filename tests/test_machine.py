"""Free memory is what the machine has and what the limits of control groups leave."""

import math
from pathlib import Path

import psutil
import pytest

from esl_dist import machine
from esl_dist.machine import free_memory, left_by_limits, processors_by_limits, usable_processors

SLURM = "/slurm/job_7/step_0"
OTHERS = "12:cpu,cpuacct:/slurm\n1:name=systemd:/user\n"


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
    assert left_by_limits(f"0::{SLURM}\n", tmp_path) == 1000 - 700 + 150
    limit_version_2(tmp_path / f".{SLURM}", "800", 600)
    assert left_by_limits(f"0::{SLURM}\n", tmp_path) == 200


def test_a_container_sees_its_own_limit_at_the_root(tmp_path: Path) -> None:
    limit_version_2(tmp_path, "1000", 400)
    assert left_by_limits("0::/\n", tmp_path) == 600
    limit_version_1(tmp_path / "memory", 900, 400, files=10)
    assert left_by_limits("4:memory:/docker/not_to_be_seen_here\n", tmp_path) == 530


def test_a_limit_of_version_1_beside_an_empty_version_2_counts(tmp_path: Path) -> None:
    limit_version_1(tmp_path / f"memory{SLURM}", 900, 400, files=10)
    assert left_by_limits(f"{OTHERS}4:memory:{SLURM}\n0::/\n", tmp_path) == 530


@pytest.mark.parametrize("groups", ["", OTHERS, f"0::{SLURM}\n", "4:memory:/\n"])
def test_without_a_limit_it_is_the_memory_of_the_machine(
    groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert left_by_limits(groups, tmp_path) == math.inf
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "absent")
    assert 0 < free_memory() <= psutil.virtual_memory().total


def test_the_smaller_of_both_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "left_by_limits", lambda groups, root: 7)
    assert free_memory() == 7


def test_processors_are_those_of_the_affinity_and_of_the_narrowest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm/job_7").mkdir(parents=True)
    (tmp_path / "slurm/job_7/cpu.max").write_text("150000 100000\n")
    (tmp_path / "slurm/cpu.max").write_text("max 100000\n")
    assert processors_by_limits(f"0::{SLURM}\n", tmp_path) == 1.5
    assert processors_by_limits("0::/user\n", tmp_path) == math.inf
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 3, 5})
    monkeypatch.setattr(machine, "processors_by_limits", lambda *_: math.inf)
    assert usable_processors() == 3
    monkeypatch.setattr(machine, "processors_by_limits", lambda *_: 0.5)
    assert usable_processors() == 1


def test_a_quota_of_version_1_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu/slurm").mkdir(parents=True)
    (tmp_path / "cpu/slurm/cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu/slurm/cpu.cfs_period_us").write_text("100000\n")
    assert processors_by_limits("12:cpu,cpuacct:/slurm\n", tmp_path) == 2
    (tmp_path / "cpu/slurm/cpu.cfs_quota_us").write_text("-1\n")
    assert processors_by_limits("12:cpu,cpuacct:/slurm\n", tmp_path) == math.inf
