"""Whole programs on a backbone of timm: trained, labelling, scored, exported, and without timm or its weights."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.on_ranks import PROJECT, shared_server
from tests.programs import TINY_TRAINING, succeed

TRAIN = "launch/train.py"
BACKBONE = "network.architecture=timm/test_resnet"


def words(town: Path, experiments: Path, *more: str) -> list[str]:
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    return [*TINY_TRAINING, *data, f"experiments={experiments}", BACKBONE, "name=run", *more]


def scores_of(checkpoint: Path, town: Path, output: Path) -> dict:
    succeed(
        "launch/evaluate.py",
        *(f"checkpoint={checkpoint}", f"data.path={town}/target_val", f"output={output}", "workers=0"),
    )
    scores: dict = json.loads(output.read_text())
    return scores


def test_a_student_and_its_teacher_are_trained_shown_scored_and_exported(town: Path, tmp_path: Path) -> None:
    method = ("method.name=self_training", "network.batch_norm=per_domain", "steps=2", "pictures_every=1")
    succeed(TRAIN, *words(town, tmp_path, *method))
    run = tmp_path / "snapshots/run"
    events = EventAccumulator(str(tmp_path / "logs/run"))
    events.Reload()
    assert events.Tags()["images"]
    labels = tmp_path / "labels"
    succeed(
        "launch/pseudo_label.py",
        *(f"checkpoint={run}", f"target.path={town}/target_train", f"output={labels}", "workers=0"),
    )
    classes = json.loads((labels / "summary.json").read_text())["classes"]
    assert sum(row["pixels_predicted"] for row in classes.values()) == 6 * 64 * 32
    of_run, of_file = (scores_of(place, town, tmp_path / "scores.json") for place in (run, run / "weights.safetensors"))
    assert (of_run["miou"], of_run["iou"]) == (of_file["miou"], of_file["iou"])


@pytest.mark.parametrize(
    ("program", "variables", "more", "message"),
    [
        ((str(PROJECT / TRAIN),), {}, (), "network.architecture=timm/test_resnet needs timm: pip install 'esl-dist[t"),
        ((), {"HF_HUB_OFFLINE": "1"}, ("network.pretrained=true",), "network.pretrained=true: no weights of timm/test"),
    ],
    ids=["without timm", "without its weights"],
)
def test_what_is_not_there_is_told_in_one_line(
    town: Path, tmp_path: Path, program: tuple[str, ...], variables: dict[str, str], more: tuple[str, ...], message: str
) -> None:
    variables = {"HF_HOME": str(tmp_path), **variables}
    given = [*program, *words(town, tmp_path, "steps=1", *more)]
    job = shared_server().start("tests/system/without_timm.py" if program else TRAIN, given, 1, variables)
    assert job.exit_codes() == [2], job.output()
    assert message in job.output().splitlines()[-1], job.output()
    assert "Traceback" not in job.output()
