"""The files in launch/accelerate are taken by `accelerate launch`, each started as its first lines say."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.on_ranks import PROJECT, free_port
from tests.programs import TINY_TRAINING, environment

FILES = PROJECT / "launch/accelerate"
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
ON_CPUS = {"ACCELERATE_USE_CPU": "true"}
"""Lets what is for GPUs start its processes without."""
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which(os.environ.get("CXX", "c++")) is None,
    reason="DeepSpeed, or a C++ compiler for its operator, is missing",
)


def start(
    file: str, town: Path, folder: Path, more: Sequence[str] = (), variables: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a training of one step under a file of the folder, with more options of the launcher."""
    words = [*TINY_TRAINING, f"source.path={town}/source_train", f"target.path={town}/target_train"]
    words += [f"experiments={folder}", "name=r", "steps=1"]
    return subprocess.Popen(
        [*LAUNCH, str(FILES / f"{file}.yaml"), *more, str(PROJECT / "launch/train.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), **(variables or {})},
    )


def trained(*started: "subprocess.Popen[str]") -> str:
    """Wait for the end of launchers, which must be a good one; returns what the first of them said."""
    said = [process.communicate(timeout=300)[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text
    return said[0]


@pytest.mark.parametrize(
    ("file", "variables", "expected"),
    [
        ("cpu", {}, "1 process on cpu"),
        pytest.param("single_process", {}, "1 process on cpu", marks=pytest.mark.grid),
        pytest.param("multi_gpu", ON_CPUS, "2 processes on cpu", marks=pytest.mark.grid),
        # What it leaves to the launcher is what deepspeed_zero2 does, whose file tests/exact/test_deepspeed.py starts.
        pytest.param(
            *("deepspeed_zero1", {}, "2 processes on cpu"),
            marks=[needs_deepspeed, pytest.mark.grid],
        ),
    ],
)
def test_a_file_starts_its_processes(
    file: str, variables: dict[str, str], expected: str, town: Path, tmp_path: Path
) -> None:
    port = ["--main_process_port", str(free_port())]
    assert expected in trained(start(file, town, tmp_path, port, variables))
    assert (tmp_path / "snapshots/r/weights.safetensors").is_file()


@pytest.mark.grid
def test_two_machines_meet(town: Path, tmp_path: Path) -> None:
    more = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()), "--machine_rank"]
    machines = [start("multi_node", town, tmp_path, [*more, rank], ON_CPUS) for rank in ("0", "1")]
    assert "2 processes on cpu" in trained(*machines)
    assert (tmp_path / "snapshots/r/weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        pytest.param(
            *("multi_gpu", ["--main_process_port", "0"], "--multi_gpu was asked for GPUs, and PyTorch sees none"),
            marks=pytest.mark.grid,
        ),
        ("cpu", ["--zero_stage", "2"], "zero_stage 2 is for DeepSpeed, which was not asked for; add --use_deepspeed"),
        ("single_process", ["--downcast_bf16"], "downcast_bf16 true is not supported; leave it out"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(
    file: str, more: list[str], message: str, town: Path, tmp_path: Path
) -> None:
    """The last two leave no trace in the environment of the program."""
    process = start(file, town, tmp_path, more)
    said = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    assert [line for line in said.splitlines() if line.startswith("error")] != [], said
    assert message in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", sorted(FILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_file_says_its_command(file: Path) -> None:
    comment = "".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert f"accelerate launch --config_file launch/accelerate/{file.name} " in comment
