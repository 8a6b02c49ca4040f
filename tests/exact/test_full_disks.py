"""A full disk ends every program with one line that names the file; what is there stays whole."""

from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_USER_ERROR
from esl_dist.files import PARTIAL_SUFFIX
from tests.exact.trainings import run_in, start_training, train
from tests.on_ranks import Job, RankServer

pytestmark = pytest.mark.exact


def fill_disk_of(file: Path) -> Path:
    """Let every write to a file that is about to be made fail as on a full disk; returns the file it is written to."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + PARTIAL_SUFFIX)
    partial.symlink_to("/dev/full")
    return partial


def assert_one_line(job: Job, partial: Path) -> None:
    assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    assert f"error: {partial}: No space left on device\n" in job.output()
    assert "Traceback" not in job.output()


@pytest.mark.parametrize("name", ["shard-000000.tar", "summary.json", "index.json"])
def test_of_pseudo_labels(
    server: RankServer, town: Path, teacher: Path, pseudo_labels: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "labels"
    words = [f"checkpoint={teacher}", f"target.path={town}/target_train", f"output={output}", "workers=0"]
    partial = fill_disk_of(output / name)
    assert_one_line(server.start("launch/pseudo_label.py", words, 1), partial)
    assert not (output / "index.json").exists()
    assert server.run("launch/pseudo_label.py", words, 1) == [0], server.log.read_text()
    assert (output / "index.json").read_bytes() == (pseudo_labels / "index.json").read_bytes()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "config.yaml"])
def test_of_what_a_training_leaves_beside_its_checkpoints(
    server: RankServer, town: Path, tmp_path: Path, name: str
) -> None:
    run = run_in(tmp_path)
    partial = fill_disk_of(run / name)
    assert_one_line(start_training(server, town, run, 1, "steps=1"), partial)
    train(server, town, run, 1, "steps=1")
    assert (run / name).stat().st_size > 0


def test_of_scores(server: RankServer, town: Path, teacher: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    words = [f"checkpoint={teacher}", f"data.path={town}/target_val", f"output={output}", "workers=0"]
    partial = fill_disk_of(output)
    assert_one_line(server.start("launch/evaluate.py", [*words, f"experiments={tmp_path}"], 1), partial)
    assert not output.exists()
