"""The programs on machines that give little: a small /dev/shm, few open files, a temporary folder with a long path."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.grids import grid
from tests.programs import TINY_TRAINING, command, environment

SMALL_SHM = "mount -t tmpfs -o size=100k tmpfs /dev/shm || exit 99; ulimit -n 40; "
FEW_FILES = "ulimit -n {}; "


def training(town: Path, experiments: Path, name: str) -> list[str]:
    words = [*TINY_TRAINING, f"source.path={town}/source_train", f"target.path={town}/target_train", "loader.workers=2"]
    return [*words, f"experiments={experiments}", f"name={name}", "steps=2", "timeout_minutes=1"]


def run_scarcely(
    folder: Path, script: str, *arguments: str, own_mounts: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program in a shell after `script`, with a temporary folder of a long path in `folder`."""
    prefix = ["unshare", "-rm"] if own_mounts else []
    temporary = folder / ("long_" * 25)
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [*prefix, "bash", "-c", script + shlex.join(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), "TMPDIR": str(temporary)},
        timeout=200,
    )


def test_every_program_reads_with_a_small_shm_few_files_and_a_long_temporary_folder(town: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let a user mount a small file system")
    checkpoint = f"checkpoint={tmp_path}/snapshots/r"
    for program in (
        command("launch/train.py", *training(town, tmp_path, "r")),
        command(
            "launch/evaluate.py", checkpoint, f"data.path={town}/target_val", f"experiments={tmp_path}", "workers=2"
        ),
        command("launch/pseudo_label.py", checkpoint, f"target.path={town}/target_train", f"output={tmp_path}/p"),
    ):
        done = run_scarcely(tmp_path, SMALL_SHM, *program, own_mounts=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("files", "works"), grid([(48, True), (28, False)], stay=[(28, False)]))
def test_several_ranks_train_with_few_open_files_or_say_how_many_they_need(
    town: Path, tmp_path: Path, files: int, works: bool
) -> None:
    program = command("launch/train.py", *training(town, tmp_path, "r"), processes=2)
    done = run_scarcely(tmp_path, FEW_FILES.format(files), *program)
    if works:
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "snapshots/r/weights.safetensors").is_file()
    else:
        assert done.returncode != 0
        [error] = [line for line in done.stderr.splitlines() if line.startswith("error")]
        # Rank 0 says it, or another that has waited for that long enough.
        assert re.match(r"error \(rank [01]\): too few open files are allowed for 2 ranks: 28, and ", error)
        assert not (tmp_path / "snapshots").exists()
