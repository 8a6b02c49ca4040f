"""A report says what the files of its runs say, and replaces no other file."""

import base64
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from esl_dist.config import Report
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from esl_dist.programs.report import main
from esl_dist.report.writing import MARK
from tests.exact.shards import copied_shards, corrupt
from tests.report.pages import content_of


@pytest.fixture
def content(settings: Report) -> Any:
    """Return what the page of both runs holds."""
    main(settings)
    return content_of(Path(settings.output))


def test_every_figure_is_that_of_the_files(content: Any, experiments: Path) -> None:
    rows = {row["title"]: row for row in content["rows"]}
    assert list(rows) == ["advent", "advent_esl"]
    for name, row in rows.items():
        saved = json.loads((experiments / f"scores/{name}.json").read_text())
        for key in ("miou", "iou", "accuracy", "confusion", "data", "step"):
            assert row[key] == saved[key], key
        assert row["fingerprint"] == saved["data_fingerprint"]
        assert row["names"] == list(saved["iou"])
        assert np.trace(saved["confusion"]) / np.sum(saved["confusion"]) == saved["accuracy"]
    [labels] = content["rounds"]
    assert labels["summary"] == json.loads((experiments / "labels/summary.json").read_text())
    assert labels["histograms"] == json.loads((experiments / "labels/histograms.json").read_text())["scores"]
    validation = json.loads((experiments / "snapshots/advent/validation.json").read_text())["steps"]
    told = {str(one["step"]): one for one in content["runs"][0]["validation"]}
    assert {step: one["miou"] for step, one in told.items()} == {
        step: one["scores"]["miou"] for step, one in validation.items()
    }


def test_runs_are_held_against_what_they_start_from(content: Any) -> None:
    first, second = content["runs"]
    assert (first["start"], first["control"], second["start"], second["control"]) == (None, None, 0, 0)
    assert (second["control_kind"], second["round"], content["rounds"][0]["used_by"]) == (
        "its start",
        0,
        ["advent_esl"],
    )
    assert [row["control"] for row in content["rows"]] == [None, 0]


def test_settings_starts_and_data_are_told(content: Any, experiments: Path) -> None:
    run = content["runs"][1]
    assert run["settings"]["network.start"] == f"{experiments}/snapshots/advent"
    assert run["settings"]["steps"] == "4"
    assert set(run["shards"]) == {"source", "target", "pseudo_labels"}
    assert run["starts"][0]["state"] == "finished"
    assert any(word.endswith("train.py") for word in run["starts"][0]["command"])


def test_curves_are_those_of_the_training(content: Any) -> None:
    first = content["curves"][0]["points"]
    assert [step for step, _ in first["loss/source_cross_entropy/main"]] == [2, 4]
    assert [step for step, _ in first["validation/miou"]] == [2, 4]
    means = [one["miou"] for one in content["runs"][0]["validation"]]
    assert [value for _, value in first["validation/miou"]] == pytest.approx(means, abs=1e-6)


def test_damaged_event_files_are_noted_on_the_page(settings: Report, tmp_path: Path, experiments: Path) -> None:
    run, logs = tmp_path / "e/snapshots/advent", tmp_path / "e/logs/advent"
    run.mkdir(parents=True)
    logs.mkdir(parents=True)
    (run / "config.yaml").write_bytes((experiments / "snapshots/advent/config.yaml").read_bytes())
    [events] = sorted((experiments / "logs/advent").glob("events.out.tfevents*"))
    (logs / events.name).write_bytes(events.read_bytes()[:-3])
    settings.runs, settings.pictures = [str(run)], 0
    main(settings)
    content = content_of(Path(settings.output))
    assert any(str(logs / events.name) in note for note in content["notes"])
    assert content["curves"][0]["points"]


def test_scores_of_a_moved_run_of_which_there_are_two_are_of_none(
    settings: Report, tmp_path: Path, experiments: Path
) -> None:
    scores = json.loads((experiments / "scores/advent.json").read_text())
    runs = [tmp_path / f"seed{seed}/snapshots/advent" for seed in (1, 2)]
    for run in runs:
        run.mkdir(parents=True)
        (run / "config.yaml").write_bytes((experiments / "snapshots/advent/config.yaml").read_bytes())
    file = tmp_path / "apart/scores/advent.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**scores, "checkpoint": "gone/snapshots/advent"}))
    settings.runs, settings.scores, settings.pictures = [*map(str, runs)], [str(file)], 0
    main(settings)
    content = content_of(Path(settings.output))
    assert content["rows"][0]["run"] is None
    assert any(note.startswith(f"{file}: its gone/snapshots/advent is no longer there") for note in content["notes"])


def test_a_source_only_run_with_pseudo_labels_has_statistics_of_the_target(
    settings: Report, tmp_path: Path, experiments: Path
) -> None:
    scores = json.loads((experiments / "scores/advent.json").read_text())
    del scores["checkpoint"]
    config = (experiments / "snapshots/advent/config.yaml").read_text().replace("name: advent", "name: source_only")
    assert "pseudo_labels: null" in config
    settings.runs, settings.pictures = [str(tmp_path / "snapshots" / name) for name in ("plain", "labels")], 0
    for run, labels in zip(map(Path, settings.runs), ("null", "gone"), strict=True):
        (run / "scores").mkdir(parents=True)
        (run / "config.yaml").write_text(config.replace("pseudo_labels: null", f"pseudo_labels: {labels}"))
        (run / "scores/val.json").write_text(json.dumps(scores))
    main(settings)
    plain, labels = content_of(Path(settings.output))["rows"]
    assert (plain["control"], labels["control"]) == (None, 0)
    assert labels["unlike"] == ["batch-norm statistics of another domain"]


def layer(picture: dict[str, Any], name: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(picture["layers"][name].partition(",")[2])))


def test_pictures_are_those_of_the_target_beside_its_pseudo_labels_and_ground_truth(
    content: Any, experiments: Path, town: Path
) -> None:
    pictures = content["gallery"]["pictures"]
    assert content["gallery"]["pseudo_labels"] == f"{experiments}/labels"
    target, labels = open_shards(town / "target_train"), open_shards(experiments / "labels")
    keys = list(target.keys())
    assert [one["key"] for one in pictures] == [keys[place] for place in (0, 1, 3, 4)], "4 of 6, evenly"
    colors = {item["name"]: tuple(item["color"]) for item in content["classes"]}
    for picture in pictures:
        assert list(picture["layers"]) == ["image", "prediction", "entropy", "pseudo-label", "ground truth"]
        kept = np.array(Image.open(BytesIO(labels.read(keys.index(picture["key"]), "label"))))
        assert picture["kept"] == np.mean(kept != 255)
        shown = np.array(layer(picture, "pseudo-label").convert("RGBA"))
        assert ((shown[:, :, 3] > 0) == (kept != 255)).all(), "what is not kept is transparent"
        opaque = shown[shown[:, :, 3] > 0][:, :3]
        assert {tuple(color) for color in np.unique(opaque.reshape(-1, 3), axis=0)} <= set(colors.values())
        assert 0 < picture["entropy_mean"] < 1
        assert 0 <= picture["miou"] <= picture["accuracy"] <= 1
        assert picture["predicted"]
        assert picture["labelled"]


def test_files_of_earlier_versions_are_read_and_what_they_lack_is_said(
    experiments: Path, settings: Report, tmp_path: Path
) -> None:
    old = json.loads((experiments / "scores/advent.json").read_text())
    for key in ("confusion", "data", "data_fingerprint", "statistics_from"):
        del old[key]
    (tmp_path / "old.json").write_text(json.dumps(old))
    labels = tmp_path / "old labels"
    labels.mkdir()
    for file in (experiments / "labels").iterdir():
        if file.name != "histograms.json" and file.is_file():
            (labels / file.name).write_bytes(file.read_bytes())
    settings.scores, settings.pseudo_labels, settings.pictures = [str(tmp_path / "old.json")], [str(labels)], 0
    main(settings)
    content = content_of(Path(settings.output))
    assert content["rows"][-1]["confusion"] is None
    assert content["rows"][-1]["run"] == 0, "known by its checkpoint"
    assert content["rounds"][0]["histograms"] is None
    assert "Label again" in content["rounds"][0]["missing"]


def test_names_from_disk_are_data(experiments: Path, settings: Report, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>{{program}}<!--"
    scores = json.loads((experiments / "scores/advent.json").read_text())
    scores["iou"] = {evil if name == "road" else name: value for name, value in scores["iou"].items()}
    del scores["confusion"]
    (tmp_path / "evil.json").write_text(json.dumps(scores))
    settings.scores, settings.pictures = [str(tmp_path / "evil.json")], 0
    main(settings)
    page = Path(settings.output).read_text()
    assert evil in content_of(Path(settings.output))["rows"][-1]["iou"]
    assert page.count("<script") == page.count("</script>") == 2
    assert "<!--" not in page[len(MARK) :]


def test_only_a_report_is_replaced(settings: Report) -> None:
    settings.pictures, output = 0, Path(settings.output)
    output.write_text("<!doctype html>\nmine")
    with pytest.raises(UserError, match=r"report\.html: exists and is no report, so it is not replaced"):
        main(settings)
    assert output.read_text() == "<!doctype html>\nmine"
    output.unlink()
    main(settings)
    main(settings)
    assert output.read_bytes().startswith(MARK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "nothing to report: name runs"),
        ({"runs": ["nowhere"]}, "nowhere: no run"),
        ({"runs": ["nowhere.json"]}, r"^runs: nowhere\.json: no such file; expected run folders, or files of scores"),
        ({"scores": ["nowhere.json"]}, r"scores: nowhere\.json: no such file"),
        ({"pseudo_labels": ["nowhere"]}, "pseudo_labels: nowhere: no such folder; .* esl-dist pseudo-label"),
        ({"target": "nowhere"}, "^target: nowhere: no such folder of shards"),
        ({"output": "/"}, "output=/: a folder"),
    ],
)
def test_what_cannot_be_reported_is_refused(settings: Report, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(Report(**{**vars(settings), **changes}))
    assert not Path(settings.output).exists()


def test_a_run_that_is_named_twice_is_refused(settings: Report) -> None:
    settings.runs = [settings.runs[0], f"{settings.runs[0]}/"]
    with pytest.raises(UserError, match=r"^runs: .* is named twice; take one out$"):
        main(settings)


def test_what_lies_elsewhere_now_is_noted_and_the_rest_is_shown(
    settings: Report, tmp_path: Path, experiments: Path
) -> None:
    moved = tmp_path / "moved/snapshots/advent_esl"
    moved.mkdir(parents=True)
    config = (experiments / "snapshots/advent_esl/config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(f"{experiments}/labels", "gone"))
    settings.runs = [settings.runs[0], str(moved)]
    (moved / "validation.json").write_bytes((experiments / "snapshots/advent/validation.json").read_bytes())
    main(settings)
    content = content_of(Path(settings.output))
    [validated] = [row for row in content["rows"] if row["run"] == 1]
    assert validated["title"] == "advent_esl, validation, best step, chosen on these pictures"
    assert validated["fingerprint"] == content["rows"][0]["fingerprint"]
    assert validated["unlike"] == ["only one is the best step, chosen on these pictures"]
    assert any("gone" in note for note in content["notes"])
    assert "no checkpoint" in content["gallery"]["note"]
    assert content["runs"][1]["problems"]
    assert content["rows"][0]["title"] == "advent"


def test_named_scores_stand_for_a_run_and_rows_of_one_title_are_told_apart(
    settings: Report, tmp_path: Path, experiments: Path
) -> None:
    scores = json.loads((experiments / "scores/advent.json").read_text())
    runs = [tmp_path / "snapshots" / name for name in ("first", "second")]
    for run in runs:
        run.mkdir(parents=True)
        (run / "config.yaml").write_bytes((experiments / "snapshots/advent/config.yaml").read_bytes())
        (run / "validation.json").write_bytes((experiments / "snapshots/advent/validation.json").read_bytes())
        (tmp_path / "s" / run.name).mkdir(parents=True)
        (tmp_path / "s" / run.name / "val.json").write_text(json.dumps({**scores, "checkpoint": str(run)}))
    settings.runs, settings.pictures = [*map(str, runs)], 0
    settings.scores = [str(tmp_path / "s/second/val.json"), str(tmp_path / "s/first/val.json")]
    main(settings)
    content = content_of(Path(settings.output))
    assert [(row["title"], row["run"]) for row in content["rows"]] == [("second/val", 1), ("first/val", 0)]
    assert not any("no scores" in note for note in content["notes"])


def test_each_row_has_as_much_of_its_path_as_tells_it_from_the_others(
    settings: Report, tmp_path: Path, experiments: Path
) -> None:
    places = ["a/val.json", "a/scores/val.json", "b/val.json", "c/b/val.json", "d/b/other.json"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes((experiments / "scores/advent.json").read_bytes())
    settings.runs, settings.pictures = [str(tmp_path / place) for place in places], 0
    main(settings)
    titles = [row["title"] for row in content_of(Path(settings.output))["rows"]]
    named = f"{tmp_path.name}/b/val"
    assert titles == [str(tmp_path / "a/val.json"), str(tmp_path / "a/scores/val.json"), named, "c/b/val", "other"]


def test_what_makes_missing_scores_is_told_so_that_the_next_report_finds_them(
    settings: Report, tmp_path: Path, experiments: Path
) -> None:
    run = tmp_path / "snapshots/advent"
    run.mkdir(parents=True)
    (run / "config.yaml").write_bytes((experiments / "snapshots/advent/config.yaml").read_bytes())
    settings.runs, settings.pictures = [str(run)], 0
    main(settings)
    [words] = [note for note in content_of(Path(settings.output))["notes"] if "no scores" in note]
    output = Path(words.rpartition("output=")[2])
    output.parent.mkdir()
    scores = json.loads((experiments / "scores/advent.json").read_text())
    output.write_text(json.dumps({**scores, "checkpoint": str(run)}))
    main(settings)
    assert [row["title"] for row in content_of(Path(settings.output))["rows"]] == ["advent"]


def test_a_damaged_part_of_the_gallery_takes_nothing_else_away(
    settings: Report, tmp_path: Path, experiments: Path, town: Path
) -> None:
    keys = list(open_shards(town / "target_train").keys())
    broken = copied_shards(town / "target_train", tmp_path / "target")
    named = corrupt(broken, 0)
    labels = Path(shutil.copytree(experiments / "labels", tmp_path / "labels"))
    (labels / "index.json").write_text("{")
    config = (experiments / "snapshots/advent_esl/config.yaml").read_text()
    run = Path(shutil.copytree(experiments / "snapshots/advent_esl", tmp_path / "snapshots/advent_esl"))
    (run / "config.yaml").write_text(config.replace(f"{experiments}/labels", str(labels)))
    settings.runs, settings.target = [str(run)], str(broken)
    main(settings)
    shown = content_of(Path(settings.output))["gallery"]
    assert [one["key"] for one in shown["pictures"]] == [keys[place] for place in (1, 3, 4)]
    assert all("pseudo-label" not in one["layers"] for one in shown["pictures"])
    assert str(labels) in shown["note"]
    assert named in shown["note"]

    shutil.copy(experiments / "labels/index.json", labels)
    named = corrupt(labels, 1, "label.png")
    main(settings)
    shown = content_of(Path(settings.output))["gallery"]
    assert ["pseudo-label" in one["layers"] for one in shown["pictures"]] == [False, True, True]
    assert named in shown["note"]


def test_labels_of_other_classes_take_the_ground_truth_alone_from_the_gallery(
    settings: Report, tmp_path: Path, experiments: Path, town: Path
) -> None:
    other = copied_shards(town / "target_train", tmp_path / "target")
    index = json.loads((other / "index.json").read_text())
    [name] = index["class_sets"]
    index["class_sets"] = {"other": index["class_sets"][name]}
    (other / "index.json").write_text(json.dumps(index))
    settings.runs, settings.target = [str(experiments / "snapshots/advent_esl")], str(other)
    main(settings)
    shown = content_of(Path(settings.output))["gallery"]
    assert len(shown["pictures"]) == 4
    assert {tuple(one["layers"]) for one in shown["pictures"]} == {("image", "prediction", "entropy", "pseudo-label")}
    assert f"ground truth: {other}: no class set {name!r}" in shown["note"]


def test_from_another_folder_what_is_relative_is_asked_for(
    settings: Report, tmp_path: Path, experiments: Path, town: Path
) -> None:
    run = Path(shutil.copytree(experiments / "snapshots/advent_esl", tmp_path / "snapshots/advent_esl"))
    config = (experiments / "snapshots/advent_esl/config.yaml").read_text()
    config = config.replace(f"{experiments}/labels", "labels").replace(f"{town}/target_train", "target")
    (run / "config.yaml").write_text(config)
    settings.runs = [str(run)]
    main(settings)
    content = content_of(Path(settings.output))
    assert (
        "target: these shards of the target are not there; give their place as target=…" in content["gallery"]["note"]
    )
    assert any(note.startswith("labels: these pseudo-labels are not there") for note in content["notes"])
    settings.target, settings.pseudo_labels = f"{town}/target_train", [f"{experiments}/labels"]
    main(settings)
    content = content_of(Path(settings.output))
    assert len(content["gallery"]["pictures"]) == 4
    assert content["rounds"][0]["used_by"] == ["advent_esl"]
    assert not any(note.startswith("labels: ") for note in content["notes"])
    other = shutil.copytree(experiments / "labels", tmp_path / "other/labels")
    settings.pseudo_labels += [str(other)]
    main(settings)
    assert [one["used_by"] for one in content_of(Path(settings.output))["rounds"]] == [[], []], "either may be meant"
