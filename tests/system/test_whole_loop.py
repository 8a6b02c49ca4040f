"""Pictures → shards → training → pseudo-labels → training with them → scores, on one and on two processes."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.programs import PROJECT, TINY_TRAINING, run, small_town, succeed


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_town(tmp_path_factory.mktemp("town"), source=8, target=9)


@pytest.fixture(scope="module")
def trained(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train AdvEnt for a few steps; returns the folder of the run."""
    experiments = tmp_path_factory.mktemp("experiments")
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    succeed("launch/train.py", *TINY_TRAINING, *data, f"experiments={experiments}", "name=advent", "steps=20")
    return experiments / "snapshots/advent"


def label(town: Path, trained: Path, output: Path, *words: str, processes: int = 1) -> dict:
    basis = [f"checkpoint={trained}", f"target.path={town}/target_train", f"output={output}", "workers=0"]
    succeed("launch/pseudo_label.py", *basis, *words, processes=processes)
    return json.loads((output / "summary.json").read_text())


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("score", ["entropy", "confidence"])
def test_pseudo_labels_have_the_same_bits_on_one_and_on_two_processes(
    town: Path, trained: Path, tmp_path: Path, score: str
) -> None:
    one = label(town, trained, tmp_path / "one", f"score={score}")
    two = label(town, trained, tmp_path / "two", f"score={score}", "workers=1", processes=2)
    assert one == two
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*.tar"))) > 2, "the job was not shared"
    assert sum(row["pixels_predicted"] for row in one["classes"].values()) == 9 * 64 * 32


COUNTING_PROGRAM = """
import atexit, os, runpy, signal, sys
from esl_dist.engine import labelling

killed_at, program = int(sys.argv.pop(1)), sys.argv.pop(1)
plain, calls = labelling.label_and_score, []

def counted(*arguments):
    calls.append(1)
    if len(calls) == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)

labelling.label_and_score = counted
atexit.register(lambda: print("predicted", len(calls)))
runpy.run_path(program, run_name="__main__")
"""


def test_a_killed_labelling_keeps_its_whole_shards(town: Path, trained: Path, tmp_path: Path) -> None:
    whole = label(town, trained, tmp_path / "whole")
    killed = tmp_path / "killed"
    program = tmp_path / "counting.py"
    program.write_text(COUNTING_PROGRAM)
    words = [f"checkpoint={trained}", f"target.path={town}/target_train", f"output={killed}", "workers=0"]
    target = str(PROJECT / "launch/pseudo_label.py")
    assert run(str(program), "8", target, *words).returncode == -9
    assert not (killed / "index.json").exists()
    kept = sum(
        json.loads(entry.read_text())["sample_count"] for entry in (killed / ".scratch").glob("shard-*.tar.json")
    )
    assert 0 < kept < 8

    done = run(str(program), "0", target, *words)
    assert done.returncode == 0, done.stderr
    assert f"predicted {9 - kept}" in done.stdout
    assert json.loads((killed / "summary.json").read_text()) == whole
    assert content_of(killed) == content_of(tmp_path / "whole")


def test_finished_pseudo_labels_are_not_made_again_and_not_overwritten(
    town: Path, trained: Path, tmp_path: Path
) -> None:
    label(town, trained, tmp_path / "labels")
    before = content_of(tmp_path / "labels")
    label(town, trained, tmp_path / "labels")
    assert content_of(tmp_path / "labels") == before
    words = [f"checkpoint={trained}", f"target.path={town}/target_train", f"output={tmp_path}/labels", "workers=0"]
    done = run("launch/pseudo_label.py", *words, "entropy_floor=0.2")
    assert done.returncode == 2
    assert "made with another bound" in done.stderr


def test_training_with_pseudo_labels_starts_from_the_teacher(town: Path, trained: Path, tmp_path: Path) -> None:
    label(town, trained, tmp_path / "labels")
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    words = [*TINY_TRAINING, *data, f"pseudo_labels={tmp_path}/labels", f"network.start={trained}"]
    for method in ("source_only", "minent", "advent"):
        output = succeed(
            "launch/train.py", *words, f"experiments={tmp_path}", f"name={method}", f"method.name={method}", "steps=2"
        )
        assert "with pseudo-labels on 8 source and 9 target samples" in output


def test_pseudo_labels_of_other_shards_are_refused(town: Path, trained: Path, tmp_path: Path) -> None:
    label(town, trained, tmp_path / "labels")
    words = [
        *TINY_TRAINING,
        f"source.path={town}/source_train",
        f"target.path={town}/target_val",
        f"pseudo_labels={tmp_path}/labels",
        f"experiments={tmp_path}",
        "name=r",
    ]
    done = run("launch/train.py", *words)
    assert done.returncode == 2
    assert "9 labels for the 3 pictures" in done.stderr


def test_scores_are_the_same_on_one_and_on_two_processes(town: Path, trained: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        words = [f"checkpoint={trained}", f"data.path={town}/target_val", f"output={tmp_path}/{processes}.json"]
        table = succeed("launch/evaluate.py", *words, "workers=0", processes=processes)
        assert "mIoU" in table
    one, two = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert one == two
    assert one["step"] == 20


def test_statistics_estimated_on_the_target_change_the_scores(town: Path, trained: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={trained}", f"data.path={town}/target_val", "workers=0"]
    succeed("launch/evaluate.py", *words, f"output={tmp_path}/own.json")
    target = f"statistics_from={town}/target_train"
    succeed("launch/evaluate.py", *words, f"output={tmp_path}/estimated.json", target)
    own, estimated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "estimated"))
    assert own["iou"] != estimated["iou"]


def test_a_checkpoint_that_is_none_is_one_message(town: Path, tmp_path: Path) -> None:
    done = run("launch/evaluate.py", f"checkpoint={tmp_path}", f"data.path={town}/target_val")
    assert done.returncode == 2
    assert f"{tmp_path}: no checkpoint; expected a run folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
