"""Pictures → shards → training → pseudo-labels → training with them → scores, on one and on two processes."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.exact.trainings import IN_FLOAT64
from tests.grids import grid
from tests.programs import PROJECT, TINY_TRAINING, run, small_town, succeed


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_town(tmp_path_factory.mktemp("town"), source=8, target=18)


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


@pytest.mark.parametrize("score", grid(["entropy", "confidence"], stay=["confidence"]))
def test_pseudo_labels_have_the_same_bits_on_one_and_on_two_processes(
    town: Path, trained: Path, tmp_path: Path, score: str
) -> None:
    one = label(town, trained, tmp_path / "one", f"score={score}")
    two = label(town, trained, tmp_path / "two", f"score={score}", "workers=1", processes=2)
    assert one == two
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert sum(row["pixels_predicted"] for row in one["classes"].values()) == 18 * 64 * 32


COUNTING_PROGRAM = """
import os, runpy, sys
from esl_dist.inference.labelling import levels

program = sys.argv.pop(1)
plain = levels.label_and_score

def counted(*arguments):
    os.write(1, f"predicted by {os.environ['RANK']}.\\n".encode())
    return plain(*arguments)

levels.label_and_score = counted
runpy.run_path(program, run_name="__main__")
"""


def test_ranks_share_the_pictures_of_a_single_shard(trained: Path, tmp_path: Path) -> None:
    town = small_town(tmp_path, source=1, target=18, shard_bytes=10**8)
    program = tmp_path / "counting.py"
    program.write_text(COUNTING_PROGRAM)
    words = [f"checkpoint={trained}", f"target.path={town}/target_train", f"output={tmp_path}/labels", "workers=0"]
    done = run(str(program), str(PROJECT / "launch/pseudo_label.py"), *words, processes=2)
    assert done.returncode == 0, done.stderr
    ranks = re.findall(r"predicted by (\d)\.", done.stdout)
    assert sorted(map(ranks.count, "01")) == [8, 10]
    assert len(list((tmp_path / "labels").glob("*.tar"))) == 1


def test_predictions_do_not_depend_on_the_number_of_threads(trained: Path, tmp_path: Path) -> None:
    town = small_town(tmp_path, source=1, target=3, width=240, height=180)
    program = tmp_path / "keep_scratch.py"
    # Few scores differ with another order of adding, and hardly a label: so the scores themselves are compared.
    program.write_text(
        "import runpy, shutil, sys\n"
        "shutil.rmtree = lambda *_, **__: None\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    for threads in (1, 2):
        words = [f"checkpoint={trained}", f"target.path={town}/target_train", f"output={tmp_path}/{threads}"]
        done = run(str(program), str(PROJECT / "launch/pseudo_label.py"), *words, "workers=0", threads=threads)
        assert done.returncode == 0, done.stderr
    assert content_of(tmp_path / "1/.scratch") == content_of(tmp_path / "2/.scratch")


def test_a_labelling_killed_before_its_index_can_be_finished(town: Path, trained: Path, tmp_path: Path) -> None:
    summary = label(town, trained, tmp_path / "labels")
    (tmp_path / "labels/index.json").unlink()
    (tmp_path / "labels/.scratch").mkdir()
    assert label(town, trained, tmp_path / "labels") == summary
    assert not (tmp_path / "labels/.scratch").exists()


def test_ranks_that_find_different_checkpoints_refuse_to_score(town: Path, trained: Path, tmp_path: Path) -> None:
    experiments = tmp_path / "other"
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    succeed("launch/train.py", *TINY_TRAINING, *data, f"experiments={experiments}", "name=advent", "steps=2")
    program = tmp_path / "differ.py"
    program.write_text(
        "import os, runpy, sys\n"
        "program, other = sys.argv.pop(1), sys.argv.pop(1)\n"
        "if os.environ.get('RANK') == '1':\n"
        "    sys.argv.append('checkpoint=' + other)\n"
        "runpy.run_path(program, run_name='__main__')\n"
    )
    words = [str(PROJECT / "launch/evaluate.py"), str(experiments / "snapshots/advent")]
    words += [f"checkpoint={trained}", f"data.path={town}/target_val", "workers=0"]
    done = run(str(program), *words, processes=2)
    assert done.returncode != 0
    assert "ranks [1] were started with another checkpoint than rank 0" in done.stderr
    assert "mIoU" not in done.stdout


def test_finished_pseudo_labels_are_not_made_again_and_not_overwritten(
    town: Path, trained: Path, tmp_path: Path
) -> None:
    label(town, trained, tmp_path / "labels")
    before = content_of(tmp_path / "labels")
    # Killed behind its index.
    (tmp_path / "labels/.scratch").mkdir()
    label(town, trained, tmp_path / "labels")
    assert content_of(tmp_path / "labels") == before
    assert not (tmp_path / "labels/.scratch").exists()
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
        assert "with pseudo-labels on 8 source and 18 target samples" in output


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
    assert "18 labels for the 3 pictures" in done.stderr


def test_scores_are_the_same_on_one_and_on_two_processes(town: Path, trained: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        words = [f"checkpoint={trained}", f"data.path={town}/target_val", f"output={tmp_path}/{processes}.json"]
        table = succeed("launch/evaluate.py", *words, "workers=0", processes=processes)
        assert "mIoU" in table
    one, two = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert one == two
    assert one["step"] == 20


def test_statistics_estimated_on_the_target_change_the_scores_on_any_number_of_processes(
    town: Path, trained: Path, tmp_path: Path
) -> None:
    """In float64: the ranks' statistics are averaged, and a pixel between two classes would tell the order."""
    words = [str(PROJECT / "launch/evaluate.py"), f"checkpoint={trained}", f"data.path={town}/target_val", "workers=0"]
    succeed(IN_FLOAT64, *words, f"output={tmp_path}/own.json")
    target = f"statistics_from={town}/target_train"
    succeed(IN_FLOAT64, *words, f"output={tmp_path}/one.json", target)
    succeed(IN_FLOAT64, *words, f"output={tmp_path}/two.json", target, processes=2)
    own, one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "one", "two"))
    assert own["iou"] != one["iou"]
    assert two == one


def test_a_checkpoint_that_is_none_is_one_message(town: Path, tmp_path: Path) -> None:
    done = run("launch/evaluate.py", f"checkpoint={tmp_path}", f"data.path={town}/target_val")
    assert done.returncode == 2
    assert f"{tmp_path}: no checkpoint; expected a run folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
