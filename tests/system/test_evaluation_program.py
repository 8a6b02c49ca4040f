"""launch/evaluate.py as a whole: every snapshot of a run that is still training, ensembles, files of weights."""

import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.config import Evaluate
from esl_dist.config_files import load_config
from esl_dist.data.labels import class_names
from esl_dist.data.loading import Samples, label_source
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from esl_dist.inference.contradictions import check_evaluation
from esl_dist.reporting.scores import percent, scores_of
from tests.programs import TINY_TRAINING, command, environment, run, succeed

DATA = "toytown_target_val"
SNAPSHOTS = [4, 8, 12]


def scored_on(town: Path) -> dict[str, str | None]:
    """Return what scores say of their pictures and statistics."""
    fingerprint = open_shards(town / "target_val").fingerprint()
    return {"data": "toytown target_val", "data_fingerprint": fingerprint, "statistics_from": None}


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def best(town: Path, experiments: Path) -> list[str]:
    """Train while two processes that were there before wait for every snapshot; returns the lines they printed."""
    words = [*best_words(town, experiments), "wait_minutes=4"]
    with open(experiments / "errors", "w+", encoding="utf-8") as errors:
        waiting = subprocess.Popen(
            command("launch/evaluate.py", *words, processes=2),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(),
        )
        try:
            assert waiting.stdout is not None
            first = waiting.stdout.readline()
            assert first == f"waiting for {experiments}/snapshots/r\n"
            data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
            kept = ["checkpoints.every=2", "checkpoints.keep_every=4", "checkpoints.keep_newest=1"]
            succeed("launch/train.py", *TINY_TRAINING, *data, *kept, f"experiments={experiments}", "name=r", "steps=12")
            rest, _ = waiting.communicate(timeout=120)
        finally:
            waiting.terminate()
        assert waiting.returncode == 0, (experiments / "errors").read_text()
    return [first.strip(), *rest.splitlines()]


def best_words(town: Path, experiments: Path) -> list[str]:
    run_folder = experiments / "snapshots/r"
    painted = f"predictions={experiments}/painted"
    return ["mode=best", f"checkpoint={run_folder}", f"data.path={town}/target_val", painted, "workers=0"]


@pytest.fixture(scope="module")
def trained(best: list[str], experiments: Path) -> Path:
    return experiments / "snapshots/r"


@pytest.fixture(scope="module")
def kept(trained: Path) -> dict[str, Any]:
    return read(trained / f"scores/{DATA}.json")


def table_of(lines: list[str], rows: int) -> list[str]:
    """Return the table of all scores and the line that names the best of them."""
    end = next(place for place, line in enumerate(lines) if line.startswith("best: ")) + 1
    return lines[end - rows : end]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def scores_at(kept: dict[str, Any], step: int) -> dict[str, Any]:
    """Return a snapshot's scores without the checksum of its weights."""
    return {name: value for name, value in kept["snapshots"][str(step)].items() if name != "weights"}


def evaluate(town: Path, experiments: Path, output: str, *words: str, processes: int = 1) -> dict[str, Any]:
    """Score on the validation split; returns what was written to <experiments>/<output>.json."""
    file = experiments / f"{output}.json"
    basis = [f"data.path={town}/target_val", f"experiments={experiments}", f"output={file}", "workers=0"]
    table = succeed("launch/evaluate.py", *basis, *words, processes=processes)
    lines = table.splitlines()
    row = lines[next(place for place, line in enumerate(lines) if line.startswith("done in ")) - 1]
    assert row.split()[-1] == percent(read(file)["miou"]), "the table shows what is written"
    return read(file)


def painted_scores(town: Path, folder: Path) -> dict[str, Any]:
    """Return the scores of coloured predictions: their colours are turned back into classes and counted."""
    shards = open_shards(town / "target_val")
    class_set, classes = next(iter(shards.index.class_sets.items()))
    samples = Samples(shards, None, label_source(shards, class_set, classes))
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    assert sorted(path.name for path in folder.iterdir()) == sorted(map("{}.png".format, shards.keys()))
    for position in range(len(shards)):
        with Image.open(folder / f"{shards.key(position)}.png") as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            painted = np.array(image)
        label = samples.label(position)
        assert painted.shape == (*label.shape, 3), "at the label's own size"
        matches = np.stack([(painted == item.color).all(2) for item in classes])
        assert (matches.sum(0) == 1).all(), "every pixel has the colour of one class"
        counted = label != 255
        np.add.at(confusion, (label[counted], matches.argmax(0)[counted]), 1)
    return {**scores_of(confusion, class_names(classes)), "confusion": confusion.tolist()}


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_an_evaluation_started_before_the_training_scores_each_snapshot_and_ends_with_the_last(
    best: list[str], kept: dict[str, Any], trained: Path
) -> None:
    scored = [line.removeprefix("r, ") for line in best if line.startswith("r, step ")]
    miou = {step: percent(kept["snapshots"][str(step)]["miou"]) for step in SNAPSHOTS}
    assert scored == [f"step {step}: mIoU {miou[step]}" for step in SNAPSHOTS]
    assert list(kept["snapshots"]) == [str(step) for step in SNAPSHOTS]
    highest = max(SNAPSHOTS, key=lambda step: kept["snapshots"][str(step)]["miou"])
    assert kept["best"] == {"step": highest, **kept["snapshots"][str(highest)]}
    assert f"best: step {highest}, mIoU {miou[highest]}; all scores are in {trained}/scores/{DATA}.json" in best


def test_a_second_evaluation_on_one_process_scores_nothing_and_shows_the_same(
    best: list[str], town: Path, experiments: Path, trained: Path
) -> None:
    before = (trained / f"scores/{DATA}.json").read_bytes()
    done = run("launch/evaluate.py", *best_words(town, experiments))
    assert done.returncode == 0
    assert done.stderr == "", "no bar, for nothing is read"
    rows = len(SNAPSHOTS) + 2
    assert table_of(done.stdout.splitlines(), rows) == table_of(best, rows), "the table and the best of it"
    assert not [line for line in done.stdout.splitlines() if line.startswith("r, step ")], "nothing is scored"
    assert (trained / f"scores/{DATA}.json").read_bytes() == before


def test_snapshots_have_curves_and_pictures_beside_those_of_their_training(
    kept: dict[str, Any], experiments: Path, town: Path
) -> None:
    found = events(experiments / "logs/r/scores")
    curve = found.Scalars(f"score/{DATA}/miou")
    assert [event.step for event in curve] == SNAPSHOTS
    expected = [kept["snapshots"][str(step)] for step in SNAPSHOTS]
    assert [event.value for event in curve] == pytest.approx([one["miou"] for one in expected], abs=1e-6)
    for name, iou in expected[0]["iou"].items():
        if iou is not None:
            assert found.Scalars(f"iou/{DATA}/{name}")[0].value == pytest.approx(iou, abs=1e-6)
    shown = set(found.Tags()["images"])
    first, *_ = keys = list(open_shards(town / "target_val").keys())
    assert shown == {f"prediction/{DATA}/{key}.png" for key in keys}, "those of all processes"
    pictures = found.Images(f"prediction/{DATA}/{first}.png")
    assert [(image.step, image.width, image.height) for image in pictures] == [(step, 64, 32) for step in SNAPSHOTS]
    painted = experiments / f"painted/step-00000012/{first}.png"
    with Image.open(BytesIO(pictures[-1].encoded_image_string)) as last, Image.open(painted) as written:
        np.testing.assert_array_equal(np.array(last), np.array(written))


def test_predictions_are_painted_for_every_snapshot(kept: dict[str, Any], experiments: Path, town: Path) -> None:
    painted = {step: painted_scores(town, experiments / f"painted/step-{step:08d}") for step in SNAPSHOTS}
    assert painted == {step: scores_at(kept, step) for step in SNAPSHOTS}


def test_a_run_and_its_file_of_weights_have_the_scores_of_the_last_snapshot(
    kept: dict[str, Any], town: Path, experiments: Path, trained: Path
) -> None:
    single = evaluate(town, experiments, "single", f"checkpoint={trained}")
    assert single == scores_at(kept, 12) | {"checkpoint": str(trained), "step": 12, **scored_on(town)}
    file = trained / "weights.pth"
    assert evaluate(town, experiments, "file", f"checkpoint={file}") == single | {"checkpoint": str(file), "step": None}
    curves = events(experiments / "logs/r_weights/scores")
    assert curves.Scalars("score/miou")[-1].value == curves.Scalars(f"score/{DATA}/miou")[-1].value


def test_an_ensemble_is_scored_alike_on_one_and_on_two_processes(
    kept: dict[str, Any], town: Path, experiments: Path, trained: Path
) -> None:
    """In half precision, at another size than that of the labels, at which the predictions are painted."""
    networks = [str(trained / "checkpoints/step-00000004"), str(trained / "weights.safetensors")]
    words = [
        "mode=ensemble",
        f"checkpoints=[{','.join(networks)}]",
        "ensemble_weights=[0.5,2]",
        "data.size=[48,24]",
        "precision=bf16",
    ]
    one = evaluate(town, experiments, "one", *words, f"predictions={experiments}/one")
    two = evaluate(town, experiments, "two", *words, f"predictions={experiments}/two", processes=2)
    assert one == two
    assert (one.pop("checkpoints"), one.pop("weights")) == (networks, [0.5, 2.0])
    told = scored_on(town)
    assert {key: one.pop(key) for key in told} == told
    assert painted_scores(town, experiments / "one") == one
    assert painted_scores(town, experiments / "two") == one
    assert one not in [scores_at(kept, step) for step in SNAPSHOTS]
    assert events(experiments / "logs/r+r_weights/scores").Scalars(f"score/{DATA}/miou")


def test_the_weights_of_an_ensemble_are_those_of_its_networks_in_turn(
    kept: dict[str, Any], town: Path, experiments: Path, trained: Path
) -> None:
    networks = [str(trained / f"checkpoints/step-{step:08d}") for step in (8, 4, 12)]
    words = ["mode=ensemble", f"checkpoints=[{','.join(networks)}]", "ensemble_weights=[0,3,0]"]
    scores = evaluate(town, experiments, "weighted", *words)
    assert scores == scores_at(kept, 4) | {"checkpoints": networks, "weights": [0.0, 3.0, 0.0], **scored_on(town)}
    assert len({kept["snapshots"][str(step)]["miou"] for step in SNAPSHOTS}) == len(SNAPSHOTS)


CONTRADICTIONS = [
    (["mode=ensemble"], "mode=ensemble needs its networks: checkpoints="),
    (["mode=ensemble", "checkpoints=[a,b]", "ensemble_weights=[1]"], "expected one for each of the 2 checkpoints"),
    (["mode=ensemble", "checkpoints=[a,b]", "ensemble_weights=[0,0]"], "ensemble_weights are all 0"),
    (["checkpoint=a", "domain=source", "statistics_from=s"], "domain=source contradicts statistics_from="),
    (["checkpoint=a", "output=/tmp"], "output=/tmp: a folder; expected the name of a JSON file"),
    (["mode=ensemble", "checkpoints=[a]", "checkpoint=b"], "mode=ensemble takes checkpoints="),
    (["mode=ensemble", "checkpoints=[a]", "wait_minutes=1"], "wait_minutes is for mode=best"),
    (["checkpoint=a", "wait_minutes=1"], "wait_minutes is for mode=best"),
    ([], "mode=single needs a network: checkpoint="),
    (["mode=best"], "mode=best needs a network: checkpoint="),
    (["mode=best", "checkpoint=a", "checkpoints=[b]"], "checkpoints and ensemble_weights are for mode=ensemble"),
    (["checkpoint=a", "ensemble_weights=[1]"], "checkpoints and ensemble_weights are for mode=ensemble"),
]


@pytest.mark.parametrize(("words", "message"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as found:
        check_evaluation(load_config(Evaluate, None, ["data.path=x", *words]))
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [CONTRADICTIONS[1], (["checkpoint=a", "ensemble_weights=[-1]"], "ensemble_weights=[-1.0] is impossible")],
)
def test_a_contradiction_ends_the_program_with_one_message(tmp_path: Path, words: list[str], message: str) -> None:
    done = run("launch/evaluate.py", "data.path=/nowhere", *words, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])


def test_a_snapshot_whose_painting_was_broken_off_is_painted_again(
    kept: dict[str, Any], town: Path, experiments: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "experiments"
    shutil.copytree(experiments, copy)
    for picture in sorted((copy / "painted/step-00000008").iterdir())[1:]:
        picture.unlink()
    printed = succeed("launch/evaluate.py", *best_words(town, copy), f"experiments={copy}")
    scored = [line for line in printed.splitlines() if line.startswith("r, step ")]
    assert [line.partition(":")[0] for line in scored] == ["r, step 8"]
    assert painted_scores(town, copy / "painted/step-00000008") == scores_at(kept, 8)
