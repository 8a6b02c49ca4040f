"""Mixed precision and the ways to start several processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.grids import grid
from tests.on_ranks import shared_server
from tests.programs import PROJECT, TINY_TRAINING, TORCHRUN, environment


def training(town: Path, experiments: Path) -> list[str]:
    words = [*TINY_TRAINING, f"source.path={town}/source_train", f"target.path={town}/target_train"]
    return [*words, f"experiments={experiments}", "name=r", "steps=2"]


def launch(launcher: list[str], town: Path, experiments: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher, str(PROJECT / "launch/train.py"), *training(town, experiments), *more],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=200,
    )


ACCELERATE = ["accelerate.commands.launch", "--cpu"]


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        pytest.param(
            *([*ACCELERATE, "--num-processes", "1", "--mixed_precision", "bf16"], "1 process on cpu, precision bf16"),
            marks=pytest.mark.grid,
        ),
        pytest.param([*TORCHRUN, "2"], "2 processes on cpu, precision no", marks=pytest.mark.grid),
    ],
)
def test_as_many_processes_train_as_the_launcher_was_asked_for(
    town: Path, tmp_path: Path, launcher: list[str], expected: str
) -> None:
    done = launch(launcher, town, tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert (tmp_path / "snapshots/r/checkpoints/step-00000002").is_dir()


@pytest.mark.grid
def test_torchrun_trains_in_the_precision_of_the_setting(town: Path, tmp_path: Path) -> None:
    done = launch([*TORCHRUN, "2"], town, tmp_path, "precision=bf16")
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu, precision bf16" in done.stdout
    [start] = json.loads((tmp_path / "snapshots/r/run.json").read_text())["starts"]
    assert (start["precision"], start["processes"], start["devices"]) == ("bf16", 2, ["cpu", "cpu"])


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_gpu_trains_in_every_precision(town: Path, tmp_path: Path, precision: str) -> None:
    launcher = ["accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", precision]
    done = launch(launcher, town, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"1 process on cuda, precision {precision}" in done.stdout
    assert (tmp_path / "snapshots/r/checkpoints/step-00000002").is_dir()


def test_half_precision_without_a_gpu_is_refused(town: Path, tmp_path: Path) -> None:
    asked = {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_CPU": "true"}
    job = shared_server().start("launch/train.py", training(town, tmp_path), 1, asked)
    assert job.exit_codes() == [2], job.output()
    assert "error: precision fp16 needs a GPU; on CPU choose no or bf16, as precision=…" in job.output()


def test_a_mistake_on_several_processes_is_told_with_the_rank(town: Path, tmp_path: Path) -> None:
    done = launch([*TORCHRUN, "2"], town, tmp_path, "batch_size=3")
    assert done.returncode != 0
    assert "batch_size=3 cannot be shared by 2 processes in 1 passes; expected a multiple of 2" in done.stderr
    # Rank 0 says it, or another that has waited for that long enough.
    assert len(re.findall(r"^error \(rank [01]\): ", done.stderr, re.MULTILINE)) == 1
    assert done.stderr.count("Traceback") == 1, "torchrun's own"


TWO, TWO_IN_BF16 = ["--num_processes", "2"], ["--num-processes=2", "--mixed_precision", "bf16"]


@pytest.mark.parametrize("asked", grid([TWO, TWO_IN_BF16], stay=[TWO_IN_BF16]))
def test_one_process_in_place_of_several_is_refused_with_the_line_to_type(
    town: Path, tmp_path: Path, asked: list[str]
) -> None:
    """Accelerate's launcher for CPUs starts one, however many it was asked for."""
    done = launch([*ACCELERATE, *asked, "--quiet"], town, tmp_path)
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("error: accelerate launch started one process on CPU where several were asked for, or ")
    typed = f"torchrun --nproc_per_node N {PROJECT}/launch/train.py network.architecture=tiny "
    assert typed in line
    assert line.endswith("precision=bf16") == ("bf16" in asked)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was begun"
