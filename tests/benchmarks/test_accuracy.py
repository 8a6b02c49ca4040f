"""The table of accuracy on real pictures: what a row is, what is made once, and what a start leaves."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from benchmarks import programs
from benchmarks.accuracy import cells, results, tasks
from benchmarks.accuracy import run as program
from benchmarks.accuracy.cells import Cell, Place
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import SCALES, TASKS
from esl_dist import config as settings
from esl_dist import stop_signals
from esl_dist.config_files import load_config
from esl_dist.data.layouts import read_layout
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.training.contradictions import check_training
from tests.programs import PROJECT, run

TINY = SCALES["tiny"]
LISTS = {
    "camvid": ("camvid_dusk_train.txt", "camvid_dusk_val.txt"),
    "kitti": ("kitti_train.txt", "kitti_val.txt"),
}
DAY = ("0006R0_f00930", "0006R0_f00960", "0016E5_00390", "Seq05VD_f00000", "Seq05VD_f00030")


def draw_data(folder: Path) -> Path:
    """Draw pictures of every name that the splits of CamVid and KITTI have, of each class a stripe."""
    random = np.random.default_rng(0)
    for data_set, lists in LISTS.items():
        names = [name for file in lists for name in (PROJECT / "configs/datasets" / file).read_text().split()]
        height, width = (36, 48) if data_set == "camvid" else (29, 96)
        ids = np.arange(12) if data_set == "camvid" else np.array([23, 11, 17, 7, 8, 21, 19, 13, 26, 24, 33, 0])
        label = np.repeat(ids, width // 12)[None].repeat(height, 0).astype(np.uint8)
        for part in ("images", "labels"):
            (folder / data_set / part).mkdir(parents=True)
        for name in [*names, *(DAY if data_set == "camvid" else ())]:
            picture = (20 * label[..., None] + random.integers(0, 15, (height, width, 3))).astype(np.uint8)
            cv2.imwrite(str(folder / data_set / f"images/{name}.jpg"), picture)
            cv2.imwrite(str(folder / data_set / f"labels/{name}.png"), label)
    return folder


def forked(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs start in processes that have imported everything, and note which."""

    def start(name: str, words: Sequence[str]) -> None:
        started.append(name)
        done = run(name, *words)
        assert done.returncode == 0, done.stdout + done.stderr

    for module in (cells, tasks):
        monkeypatch.setattr(module, "run", start)


FEW = ["source_only", "source_only_target_statistics", "advent", "advent_esl"]


def test_a_start_makes_what_is_missing_and_leaves_each_method_s_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    forked(started, monkeypatch)
    folder, data = tmp_path / "table", draw_data(tmp_path / "data")
    words = [str(folder), "--data", str(data), "--scale", "tiny", "--tasks", "camvid_dusk", "--seeds", "5"]
    assert program.main([*words, "--methods", *FEW[:2]]) == 0
    train, evaluate = "launch/train.py", "launch/evaluate.py"
    assert started == [*["shards/prepare.py"] * 3, *[train, evaluate] * 2]
    started.clear()
    assert program.main([*words, "--methods", *FEW]) == 0
    assert started == [train, evaluate, "launch/pseudo_label.py", train, evaluate]
    started.clear()
    printed = capsys.readouterr()
    assert "accuracy: 2/4 cells; now CamVid day → dusk, seed 5, AdvEnt" in printed.err
    assert program.main([*words, "--methods", *FEW]) == 0
    assert started == []

    found = json.loads((folder / "results.json").read_text())
    assert list(found) == ["camvid_dusk"]
    assert list(found["camvid_dusk"]) == FEW
    details = json.loads((folder / "details.json").read_text())["tasks"]["camvid_dusk"]
    for method, scores in found["camvid_dusk"].items():
        written = json.loads((folder / f"camvid_dusk/scores/{method}_seed_5.json").read_text())
        assert scores == [written["miou"]]
        assert details[method]["seeds"]["5"]["iou"] == written["iou"]
        assert f"| {METHODS[method].title} | {100 * scores[0]:.1f} |" in capsys.readouterr().out or method != FEW[0]
    assert 0 < details["advent_esl"]["seeds"]["5"]["labels_kept"] <= 1
    trained = yaml.safe_load((folder / "camvid_dusk/snapshots/advent_esl_seed_5/config.yaml").read_text())
    assert trained["pseudo_labels"] == f"{folder}/camvid_dusk/labels/advent_esl_seed_5"
    assert trained["network"]["start"] == f"{folder}/camvid_dusk/snapshots/advent_seed_5"
    assert found["camvid_dusk"]["source_only"] != found["camvid_dusk"]["source_only_target_statistics"]
    packed = {part: open_shards(folder / "camvid_dusk/shards" / part).index for part in ("target", "validation")}
    assert [packed[part].image_size for part in packed] == [(64, 48)] * 2
    assert [packed[part].label_size for part in packed] == [(64, 48), (48, 36)], "scored at another size than their own"


@pytest.mark.grid
def test_every_cell_of_both_tasks_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked([], monkeypatch)
    data = draw_data(tmp_path / "data")
    assert program.main([str(tmp_path / "table"), "--data", str(data), "--scale", "tiny", "--seeds", "5"]) == 0
    found = json.loads((tmp_path / "table/results.json").read_text())
    assert {task: list(by_method) for task, by_method in found.items()} == {task: list(METHODS) for task in TASKS}


@pytest.mark.parametrize("scale", sorted(SCALES))
@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("method", sorted(name for name, one in METHODS.items() if one.scored is None))
def test_every_training_of_the_table_is_one_that_can_be(method: str, task: str, scale: str) -> None:
    training = cells.made_with(Cell(task, method, 0), SCALES[scale])["training"]
    words = [f"{key}={value}" for key, value in training.items()]
    check_training(load_config(settings.Train, None, ["source.path=s", "target.path=t", *words]))


def test_what_a_row_starts_from_or_scores_stands_above_it() -> None:
    above: set[str] = set()
    for name, method in METHODS.items():
        assert {method.start, method.scored} - {None} <= above
        above.add(name)


def test_second_stages_are_as_long_and_start_from_one_network_each() -> None:
    second = {name: method for name, method in METHODS.items() if method.start is not None}
    assert {method.start for name, method in second.items() if name != "source_only_long_target_statistics"} == {
        "advent"
    }
    for name in second:
        made = cells.made_with(Cell("camvid_dusk", name, 1), TINY)
        for key in ("steps", "optimizer.schedule_steps", "optimizer.learning_rate", "batch_size", "seed"):
            assert made["start"]["training"][key] == made["training"][key]
        assert made["start"]["start"] is None


def entries(cell: Cell, miou: float) -> dict[str, Any]:
    return {"miou": miou, "iou": {"road": miou}, "made_with": cells.made_with(cell, TINY)}


def place(folder: Path) -> Place:
    return Place(folder, folder / "data", None, TINY)


def test_a_cell_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell("camvid_dusk", "advent_long", 0)
    write_json(cell.file(tmp_path), entries(cell, 0.25))
    found = cells.read_cell(cell, place(tmp_path))
    assert found is not None
    assert found.miou == 0.25
    content = entries(cell, 0.25)
    content["made_with"]["start"]["training"]["steps"] = "9"
    write_json(cell.file(tmp_path), content)
    assert program.main([str(tmp_path), "--scale", "tiny", "--seeds", "0", "--methods", "advent_long"]) == 2
    told = capsys.readouterr().err
    assert f'error: {cell.file(tmp_path)}: was made with another start.training.steps: "9" → "2"; delete it' in told


def test_precision_may_differ_between_seeds_and_not_between_the_rows_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Cell] = []
    monkeypatch.setattr(program, "make_cell", lambda cell, at: made.append(cell))
    cell = Cell("camvid_dusk", "advent", 0)
    content = entries(cell, 0.25)
    content["made_with"]["training"]["precision"] = "bf16"
    write_json(cell.file(tmp_path), content)
    words = [str(tmp_path), "--scale", "tiny", "--methods", "advent_long", "--tasks", "camvid_dusk", "--seeds"]
    assert program.main([*words, "0"]) == 2
    assert made == []
    told = capsys.readouterr().err
    assert f"error: {cell.file(tmp_path)}: was computed with precision=bf16" in told
    assert program.main([*words, "0", "--precision", "bf16"]) == 0
    assert program.main([*words, "1"]) == 0
    assert made == [Cell("camvid_dusk", "advent_long", seed) for seed in (0, 1)]


def test_only_finished_seeds_are_in_the_results_and_the_table_compares_seed_by_seed(tmp_path: Path) -> None:
    scores = {"advent_esl": {0: 0.30, 1: 0.36}, "self_training_share": {0: 0.32, 1: 0.36, 2: 0.9}}
    for method, by_seed in scores.items():
        for seed, miou in by_seed.items():
            cell = Cell("kitti_camvid", method, seed)
            write_json(cell.file(tmp_path), entries(cell, miou))
    found = results.finished(place(tmp_path), [2, 0, 1])
    results.write_results(found, TINY, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "kitti_camvid": {"advent_esl": [0.30, 0.36], "self_training_share": [0.32, 0.36, 0.9]}
    }
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in results.table(found).splitlines()[4:]]
    assert [row[1:] for row in rows] == [
        ["30.0", "36.0", "", "33.0 ± 4.2", ""],
        ["32.0", "36.0", "90.0", "52.7 ± 32.4", "+1.0 ± 1.4"],
    ]
    assert results.mean_and_spread([]) == ""


def test_seeds_are_finished_for_all_tasks_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def make(cell: Cell, at: Place) -> None:
        made.append((cell.task, cell.seed))
        write_json(cell.file(at.folder), entries(cell, 0.5))

    monkeypatch.setattr(program, "make_cell", make)
    assert program.main([str(tmp_path), "--scale", "tiny", "--methods", "minent", "--seeds", "3", "4"]) == 0
    assert made == [("camvid_dusk", 3), ("kitti_camvid", 3), ("camvid_dusk", 4), ("kitti_camvid", 4)]


@pytest.mark.parametrize(("asked", "written"), [(["1"], [0.0, 0.1, 0.2]), (["7"], [0.7]), (["7", "1"], [0.1, 0.7])])
def test_a_reported_seed_that_is_made_again_takes_no_other_out_of_the_results(
    tmp_path: Path, asked: list[str], written: list[float]
) -> None:
    for seed in (0, 1, 2, 7):
        cell = Cell("kitti_camvid", "minent", seed)
        write_json(cell.file(tmp_path), entries(cell, seed / 10))
    words = [str(tmp_path), "--scale", "tiny", "--methods", "minent", "--tasks", "kitti_camvid", "--seeds", *asked]
    assert program.main(words) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == {"kitti_camvid": {"minent": written}}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
        (subprocess.CalledProcessError(75, ["python", "train.py"]), 2, "python train.py: ended with exit code 75"),
    ],
)
def test_a_program_that_ends_before_its_time_ends_the_table_with_its_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Any,
    code: int,
    words: str,
) -> None:
    def make(cell: Cell, at: Place) -> None:
        raise error

    monkeypatch.setattr(program, "make_cell", make)
    assert program.main([str(tmp_path), "--scale", "tiny"]) == code
    assert words in capsys.readouterr().err


def test_the_table_lies_in_its_folder_or_where_it_is_asked_for(tmp_path: Path) -> None:
    cell = Cell("kitti_camvid", "minent", 0)
    write_json(cell.file(tmp_path / "table"), entries(cell, 0.5))
    words = [str(tmp_path / "table"), "--scale", "tiny", "--methods", "minent", "--tasks", "kitti_camvid", "--seeds"]
    for output in ([], ["--output", str(tmp_path / "elsewhere")]):
        assert program.main([*words, "0", *output]) == 0
    for folder in ("table", "elsewhere"):
        assert json.loads((tmp_path / folder / "results.json").read_text()) == {"kitti_camvid": {"minent": [0.5]}}


def test_a_run_of_another_precision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [SimpleNamespace(precision=precision) for precision in ("no", "bf16")]
    monkeypatch.setattr(cells, "read_record", lambda record: starts)
    for does_nothing in ("pack", "run"):
        monkeypatch.setattr(cells, does_nothing, lambda *_: None)
    with pytest.raises(UserError, match="minent_seed_5: was trained with precision=bf16, and this table is asked for"):
        cells.make_cell(Cell("camvid_dusk", "minent", 5), place(tmp_path))


def test_rare_classes_are_of_as_large_a_share_of_a_label_as_published() -> None:
    for task in TASKS.values():
        for scale in (SCALES["cpu"], SCALES["full"]):
            words = dict(word.split(".", 2)[2].split("=") for word in task.rare_class_words(scale))
            width, height = tasks.source_size(task, scale)
            assert int(words["least_pixels"]) / (width * height) == pytest.approx(3000 / (1914 * 1052), rel=0.03)
            if task.source_aspect is not None:
                assert int(words["least_in_crop"]) / (width * height) == pytest.approx(1500 / (1280 * 720), rel=0.03)


def test_at_an_interrupt_a_program_comes_to_its_own_end_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    class Interrupted:
        def wait(self) -> int:
            waits.append("wait")
            if len(waits) == 1:
                raise KeyboardInterrupt
            return 0

        def kill(self) -> None:
            waits.append("kill")

    monkeypatch.setattr(stop_signals.subprocess, "Popen", lambda words, **_: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        programs.run("launch/train.py", [])
    assert waits == ["wait", "wait"]


def test_a_program_that_fails_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        programs.run("launch/train.py", ["bach_size=4"])
    assert failure.value.returncode == 2


def test_the_splits_of_a_task_share_no_picture_and_kitti_has_the_classes_of_camvid(tmp_path: Path) -> None:
    data = draw_data(tmp_path)
    for task in TASKS.values():
        layouts = [
            read_layout(PROJECT / f"configs/datasets/{split.data_set}.yaml", split.name, data / split.data_set)
            for split in (task.source, task.target, task.validation)
        ]
        pictures = [{pair.image for pair in layout.pairs} for layout in layouts]
        assert all(pictures)
        assert len(set.union(*pictures)) == sum(map(len, pictures))
        names = [[item.name for item in layout.class_sets["camvid11"]] for layout in layouts]
        assert names[0] == names[1] == names[2]
    sequences = [{name.split("_")[0] for name in DAY if name.startswith(start)} for start in ("00", "Seq")]
    assert sequences[0].isdisjoint(sequences[1])


def test_labels_are_scored_at_their_own_size_and_a_wider_source_is_cut_to_the_target_s_size() -> None:
    scale = replace(TINY, size=(256, 192))
    assert tasks.source_size(TASKS["camvid_dusk"], scale) == (256, 192)
    assert tasks.source_size(TASKS["kitti_camvid"], scale) == (636, 192)
    assert "source.crop=[256,192]" in tasks.data_words(TASKS["kitti_camvid"], scale)
    assert not any("crop" in word for word in tasks.data_words(TASKS["camvid_dusk"], scale))
