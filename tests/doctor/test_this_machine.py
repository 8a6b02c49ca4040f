"""What doctor says of a machine follows from its numbers alone: of any other machine it would say what is so there."""

import resource
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from esl_dist.doctor.findings import COLORS, PLAIN, Finding, table, verdict
from esl_dist.doctor.this_machine import (
    FEW_FILES,
    LITTLE_ROOM,
    LONGEST_SOCKET,
    NCCL_SHARED,
    OWN_NAMES,
    Gpu,
    Place,
    driver_of,
    judged_backends,
    judged_gpus,
    launcher,
    open_files,
    packages,
    place,
    place_at,
    processors,
    shared_memory,
    temporary_folder,
)
from esl_dist.errors import UserError

NEEDED = [
    *map(Requirement, ("torch>=2.11", "numpy>=2.0", "timm>=1; extra == 'timm'", "fsspec[http]>=3; extra == 'remote'")),
    *map(
        Requirement,
        (
            "gone>=9; sys_platform == 'plan9'",
            "s3fs>=3; extra == 'remote'",
            "esl-dist[timm]; extra == 'test'",
            "pytest; extra == 'test'",
        ),
    ),
]
H100 = Gpu("NVIDIA H100", 80 * 10**9, 79 * 10**9, "9.0", ("no", "tf32", "bf16", "fp16"))


def found(installed: dict[str, str]) -> dict[str, Finding]:
    return {one.subject: one for one in packages(NEEDED, installed.get)}


def test_packages_that_are_missing_or_too_old_are_problems_and_extras_notes() -> None:
    whole = {"esl-dist": "0.1.0", "torch": "2.11.0+cu128", "numpy": "2.4", "timm": "1.0", "fsspec": "3", "s3fs": "3.1"}
    assert {one.level for one in found(whole).values()} == {"ok"}
    assert "torch 2.11.0+cu128" in found(whole)["packages"].words
    lacking = found({"esl-dist": "0.1.0", "torch": "2.9", "fsspec": "2"})
    assert lacking["torch"] == ("problem", "torch", "torch 2.9 is installed, >=2.11 needed; pip install 'torch>=2.11'")
    assert lacking["numpy"].level == "problem"
    assert lacking["[timm]"].level == "note"
    assert "pip install 'esl-dist[timm]'" in lacking["[timm]"].words
    assert "fsspec 2 is installed, >=3 needed, s3fs is not installed" in lacking["[remote]"].words
    assert "[test]" not in lacking


def test_a_gpu_is_told_with_all_that_decides_what_can_run_on_it() -> None:
    (one,) = judged_gpus([H100], True, "550.54.15")
    assert one.level == "ok"
    for fact in ("NVIDIA H100", "79.0 GB of 80.0 GB free", "9.0", "driver 550.54.15", "no, tf32, bf16, fp16"):
        assert fact in one.words
    (used,) = judged_gpus([H100._replace(free=10**9)], True, "")
    assert (used.level, "another program uses it" in used.words) == ("note", True)
    (unseen,) = judged_gpus([], True, "550.54.15")
    assert "torch does not see" in unseen.words
    (none,) = judged_gpus([], False, "")
    assert "none" in none.words


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder@U16)\n",
    ],
)
def test_the_driver_is_read_as_the_kernel_tells_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_of(tmp_path / "version") == "550.54.15"
    assert driver_of(tmp_path / "none") == ""


def test_nccl_is_missed_where_several_gpus_are_and_gloo_everywhere() -> None:
    levels = [[one.level for one in judged_backends({"gloo": "", "NCCL": None}, gpus)] for gpus in (0, 1, 2)]
    assert levels == [["ok"], ["ok"], ["note", "ok"]]
    assert [one.level for one in judged_backends({"gloo": None, "NCCL": None}, 0)] == ["note"]
    assert [one.words for one in judged_backends({"gloo": "", "NCCL": "2.27.3"}, 8)] == ["gloo, NCCL 2.27.3"]


def test_a_small_dev_shm_is_told_only_where_nccl_may_use_it() -> None:
    docker = 64 * 2**20
    assert shared_memory(docker, 0).level == shared_memory(docker, 1).level == "ok"
    assert "67 MB" in shared_memory(docker, 0).words
    few = shared_memory(docker, 2)
    assert (few.level, "--shm-size" in few.words) == ("note", True)
    assert shared_memory(NCCL_SHARED, 2).level == "ok"
    assert shared_memory(None, 2).level == "note"


def test_limits_of_files_and_processors_are_told_as_the_job_has_them() -> None:
    assert open_files(1024, resource.RLIM_INFINITY).words == "without limit"
    assert open_files(1024, 4096).words.startswith("4096 a process (1024 until")
    assert [open_files(most, most).level for most in (FEW_FILES, FEW_FILES - 1)] == ["ok", "note"]
    assert processors(3, 3).words == "3"
    assert "of 64" in processors(3, 64).words


def test_a_temporary_folder_with_a_long_path_is_told(tmp_path: Path) -> None:
    longest = "/" + (LONGEST_SOCKET - OWN_NAMES - 1) * "t"
    assert temporary_folder(None, Place(longest, 10**12, None)).level == "ok"
    long = temporary_folder(longest + "t", Place(longest + "t", 10**12, None))
    assert (long.level, f"{len(longest) + 1} bytes" in long.words) == ("note", True)
    elsewhere = temporary_folder("/not/there", Place("/tmp", 10**12, None))
    assert (elsewhere.level, "/not/there cannot be used, /tmp is" in elsewhere.words) == ("note", True)
    assert temporary_folder("/x", Place("/x", 10**12, "Permission denied")).level == "problem"


def test_a_place_is_a_problem_where_nothing_can_be_written_and_told_where_little_can(tmp_path: Path) -> None:
    assert place("experiments", Place("e", LITTLE_ROOM, None)).level == "ok"
    assert place("experiments", Place("e", LITTLE_ROOM - 1, None)).level == "note"
    assert place("experiments", Place("e", None, None)).level == "note"
    file = tmp_path / "file"
    file.touch()
    problem = place("experiments", place_at(str(file / "experiments")))
    assert (problem.level, "choose another experiments" in problem.words) == ("problem", True)
    assert place_at(str(tmp_path / "yet" / "to come")).why_not is None
    assert not (tmp_path / "yet").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "none: one process"),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            "rank 1 of 4, 2 on this machine",
        ),
        (
            {
                "TORCHELASTIC_RUN_ID": "none",
                "SLURM_JOB_ID": "7",
                "RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
            },
            "torchrun in SLURM job 7: rank 0 of 2, 2 on this machine",
        ),
    ],
)
def test_the_launcher_is_named(variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher() == words
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE=many is impossible"):
        launcher()


def test_each_finding_is_a_line_and_only_a_terminal_sees_colours() -> None:
    found = [Finding("ok", "a", "fine"), Finding("problem", "b", "two\nlines"), Finding("problem", "c", "x")]
    plain = table("title", found, False)
    assert plain.splitlines()[0] == "title"
    assert [line.split() for line in plain.splitlines()[1:]] == [
        ["ok", "a", "fine"],
        ["problem", "b", "two", "lines"],
        ["problem", "c", "x"],
    ]
    assert len({line.index(word) for line, word in zip(plain.splitlines()[1:], ("fine", "two", "x"), strict=True)}) == 1
    colored = table("title", found, True)
    for code in (*COLORS.values(), PLAIN):
        colored = colored.replace(code, "")
    assert colored == plain
    assert (verdict(found), verdict(found[:2]), verdict(found[:1])) == (
        "cannot run: 2 problems",
        "cannot run: 1 problem",
        "can run",
    )
