"""Every snapshot of a run is scored once; those to come are waited for; nothing that is scored is lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esl_dist import config as settings
from esl_dist.config_files import save_config
from esl_dist.errors import UserError
from esl_dist.runs import snapshots
from esl_dist.runs.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    BrokenCheckpointError,
    checkpoint_folder,
    checkpoint_folders,
    save_checkpoint,
)
from esl_dist.runs.snapshots import best_step, first_snapshot, score_snapshots, snapshot_steps
from tests.builders import class_set
from tests.runs.snapshot_runs import LONG, MADE_WITH, Scorer, begin, snapshots_in, weights_of, write_snapshot
from tests.training.small_runs import checkpoint, configuration, rewrite_as_version

pytestmark = pytest.mark.usefixtures("look_often")


@given(
    steps=st.integers(1, 24),
    every=st.integers(1, 8),
    keep_every=st.integers(0, 9),
    keep_newest=st.integers(1, 3),
)
@hypothesis_settings(deadline=None, max_examples=25)
def test_snapshots_are_the_checkpoints_that_saving_and_pruning_leave(
    tmp_path_factory: pytest.TempPathFactory, steps: int, every: int, keep_every: int, keep_newest: int
) -> None:
    """And none of them is missing at any time once it was written: who waits for it finds it."""
    options = settings.Checkpoints(every=every, keep_newest=keep_newest, keep_every=keep_every)
    config = configuration(steps=steps, method={"name": "source_only"})
    config.checkpoints = options
    expected = snapshot_steps(config)
    state = checkpoint(1, {"x": torch.zeros(1)}, config, class_set())
    run = tmp_path_factory.mktemp("run")
    left: list[int] = []
    for done in range(1, steps + 1):
        if done == steps or done % every == 0:
            save_checkpoint(run, replace(state, step=done), options)
            left = [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(run)]
            assert {step for step in expected if step <= done} <= set(left)
    saved = [done for done in range(1, steps + 1) if done == steps or done % every == 0]
    only_new = set(saved[-keep_newest:-1])
    assert expected == sorted(expected)
    assert set(expected) <= set(left) <= set(expected) | only_new
    if keep_newest == 1:
        assert expected == left


def test_snapshots_are_scored_in_order_and_kept_with_the_best(run: Path, tmp_path: Path) -> None:
    begin(run)
    for step in (12, 4, 8):
        write_snapshot(run, step)
    scorer = Scorer()
    scores = score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer)
    assert scorer.steps == [4, 8, 12]
    assert {step: one["miou"] for step, one in scores.items()} == {4: 0.04, 8: 0.08, 12: 0.12}
    content = json.loads((tmp_path / "kept.json").read_text())
    assert content["made_with"] == MADE_WITH
    best = {
        "step": 12,
        "miou": 0.12,
        "miou_over": {},
        "iou": {"road": None, "house": None, "sky": None},
        "weights": weights_of(run, 12),
    }
    assert content["best"] == best
    assert list(content["snapshots"]) == ["4", "8", "12"]
    assert content["snapshots"] == {str(step): one for step, one in scores.items()}


def test_only_what_is_new_is_scored(run: Path, tmp_path: Path) -> None:
    begin(run)
    write_snapshot(run, 4)
    write_snapshot(run, 8)
    first = score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    write_snapshot(run, 12)
    scorer = Scorer()
    scores = score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer)
    assert scorer.steps == [12]
    assert scores == first | {
        12: {
            "miou": 0.12,
            "miou_over": {},
            "iou": {"road": None, "house": None, "sky": None},
            "weights": weights_of(run, 12),
        }
    }
    before = (tmp_path / "kept.json").read_bytes()
    scorer = Scorer()
    assert score_snapshots(run, tmp_path / "kept.json", MADE_WITH, LONG, scorer) == scores
    assert scorer.steps == []
    assert (tmp_path / "kept.json").read_bytes() == before


def test_a_snapshot_with_other_weights_is_scored_again(run: Path, tmp_path: Path) -> None:
    """Such as one of another run, whose scores were kept under the same name."""
    begin(run)
    write_snapshot(run, 4)
    write_snapshot(run, 8)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    shutil.rmtree(checkpoint_folder(run, 4))
    write_snapshot(run, 4, weight=0.5)
    scorer = Scorer()
    scores = score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer)
    assert scorer.steps == [4]
    assert scores[4]["weights"] == weights_of(run, 4)


def test_a_snapshot_is_scored_again_where_something_that_goes_with_it_is_missing(run: Path, tmp_path: Path) -> None:
    begin(run)
    write_snapshot(run, 4)
    write_snapshot(run, 8)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer, lambda folder, known: folder.name.endswith("8"))
    assert scorer.steps == [4]


def test_snapshots_that_are_gone_or_broken_are_named_not_waited_for_and_have_no_score(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run)
    for step in (4, 8, 12):
        write_snapshot(run, step)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    shutil.rmtree(checkpoint_folder(run, 4))
    (checkpoint_folder(run, 8) / "segmentation.safetensors").write_bytes(b"")
    scores = score_snapshots(run, tmp_path / "kept.json", MADE_WITH, LONG, Scorer())
    assert list(scores) == [12]
    assert list(snapshots_in(tmp_path / "kept.json")) == ["12"]
    warnings = capsys.readouterr().err
    assert "step-00000004: not there, and the run is past it" in warnings
    assert "passing over a broken checkpoint: " in warnings
    assert "step-00000008/segmentation.safetensors: missing or not the bytes that were saved" in warnings


def test_a_snapshot_that_does_not_fit_its_run_is_named_and_passed_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bytes are those that were saved; only who loads it finds out."""
    begin(run)
    for step in (4, 8, 12):
        write_snapshot(run, step)

    def refuse(step: int) -> None:
        if step == 8:
            raise BrokenCheckpointError("step-00000008/training.pt: no 'optimizers'; choose another checkpoint")

    scores = score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer(refuse))
    assert list(scores) == [4, 12]
    assert list(snapshots_in(tmp_path / "kept.json")) == ["4", "12"]
    assert "passing over a broken checkpoint: step-00000008/training.pt: no 'optimizers'" in capsys.readouterr().err


ONE = {"miou": 0.5, "iou": {"road": 0.5}, "weights": "a" * 64}


@pytest.mark.parametrize(
    ("snapshots", "place"),
    [
        ({"4": {**ONE, "miou": 1.5}}, r"snapshots\.4\.miou: expected a number from 0 to 1, got 1\.5"),
        ({"4": {**ONE, "miou": "0.5"}}, r"snapshots\.4\.miou: expected a number from 0 to 1, got '0\.5'"),
        ({"4": {**ONE, "iou": {"road": -1}}}, r"snapshots\.4\.iou\.road: expected a number from 0 to 1"),
        ({"4": {**ONE, "iou": {"a\nb": None}}}, r"snapshots\.4\.iou: key"),
        ({"4": {**ONE, "weights": "abc"}}, r"snapshots\.4\.weights: expected a SHA-256"),
        ({"4": {**ONE, "miou_over": {"19": "x"}}}, r"snapshots\.4\.miou_over\.19: expected a number"),
        ({"4": {**ONE, "accuracy": True}}, r"snapshots\.4\.accuracy: expected a number"),
        ({"04": ONE}, r"snapshots: key: expected a step, a number, got '04'"),
        ({"4": 3}, r"snapshots\.4: expected a mapping, got 3"),
    ],
)
def test_scores_that_cannot_be_are_refused_with_their_place(
    run: Path, tmp_path: Path, snapshots: dict[str, Any], place: str
) -> None:
    begin(run)
    write_snapshot(run, 4)
    (tmp_path / "kept.json").write_text(json.dumps({"made_with": MADE_WITH, "snapshots": snapshots}))
    with pytest.raises(UserError, match=rf"kept\.json: {place}.*choose another output or delete it"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())


def test_a_snapshot_of_another_version_of_the_program_is_not_passed_over(run: Path, tmp_path: Path) -> None:
    begin(run)
    write_snapshot(run, 4)
    rewrite_as_version(checkpoint_folder(run, 4), 99)
    with pytest.raises(UserError, match=r"step-00000004/manifest\.json: format version 99"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())


def test_what_is_scored_later_has_its_place_among_the_others(run: Path, tmp_path: Path) -> None:
    begin(run)
    for step in (8, 4):
        write_snapshot(run, step)
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    assert list(snapshots_in(tmp_path / "kept.json")) == ["4", "8"]


def test_checkpoints_that_do_not_stay_are_scored_too_where_they_are_there_and_unfinished_ones_are_not(
    run: Path, tmp_path: Path
) -> None:
    begin(run)
    for step in (2, 4, 5, 6):
        write_snapshot(run, step)
    checkpoint_folder(run, 8).mkdir()
    (run / "checkpoints/step-00000012.partial").mkdir()
    (run / "checkpoints/step-00000012.partial" / MANIFEST).write_text("{}")
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer)
    assert scorer.steps == [2, 4, 5, 6]


def test_a_run_that_keeps_no_snapshot_but_the_last_has_all_its_checkpoints_scored(run: Path, tmp_path: Path) -> None:
    save_config(configuration(steps=4, checkpoints={"every": 2, "keep_every": 0}), run / RUN_CONFIG)
    for step in (2, 4):
        write_snapshot(run, step)
    assert list(score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())) == [2, 4]


def test_scores_are_kept_before_they_are_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(run)
    write_snapshot(run, 4)
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        snapshots, "print_on_main", lambda text: told.append((text, (tmp_path / "kept.json").is_file()))
    )
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    assert told == [("r, step 4: mIoU 4.0", True)]


def test_the_first_snapshot_is_the_first_that_can_be_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:

    def load(folder: Path) -> Path:
        if folder.name == "step-00000008":
            raise BrokenCheckpointError(f"{folder}: does not fit")
        return folder

    begin(run)
    with pytest.raises(UserError, match=r"snapshots/r: no checkpoint yet that can be scored"):
        first_snapshot(run, 0, load)
    for step in (6, 8, 12):
        write_snapshot(run, step)
    (checkpoint_folder(run, 6) / "segmentation.safetensors").write_bytes(b"")
    assert first_snapshot(run, 0, load) == checkpoint_folder(run, 12)
    assert capsys.readouterr().err == "", "it is told when its turn comes"


def test_a_run_of_broken_checkpoints_alone_says_what_is_wrong_with_the_newest(run: Path, tmp_path: Path) -> None:
    begin(run)
    for step in (4, 8):
        write_snapshot(run, step)
        (checkpoint_folder(run, step) / "segmentation.safetensors").write_bytes(b"")
    told = r"none of its checkpoints can be scored \(the newest: .*step-00000008/segmentation\.safetensors: missing"
    with pytest.raises(UserError, match=told):
        first_snapshot(run, 0, lambda folder: folder)
    with pytest.raises(UserError, match=told):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())


def test_the_snapshots_of_a_long_run_are_counted_without_its_steps() -> None:
    config = configuration(steps=10**9, checkpoints={"every": 3 * 10**8, "keep_every": 2 * 10**8})
    assert snapshot_steps(config) == [6 * 10**8, 10**9]


@pytest.mark.parametrize("names", [["road", "house"], ["road", "house", "sky", "sea"], ["sky", "house", "road"]])
def test_kept_scores_of_other_classes_than_the_network_s_are_refused(
    run: Path, tmp_path: Path, names: list[str]
) -> None:
    begin(run)
    write_snapshot(run, 4)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    content = json.loads((tmp_path / "kept.json").read_text())
    content["snapshots"]["4"]["iou"] = dict.fromkeys(names)
    (tmp_path / "kept.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"kept\.json: snapshots\.4\.iou: expected road, house, sky, in this order"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())


def test_scores_of_an_older_version_count_as_those_of_the_target_in_float32(run: Path, tmp_path: Path) -> None:
    begin(run)
    write_snapshot(run, 4)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH | {"domain": "target", "precision": "no"}, 0, scorer)
    assert scorer.steps == []
    for change, told in (
        ({"domain": "source"}, r'domain: "target" → "source"'),
        ({"precision": "bf16"}, r'precision: "no" → "bf16"'),
        ({"size": None}, r"size: \[8, 6\] → null"),
    ):
        with pytest.raises(UserError, match=rf"holds scores made with another {told}; choose another output"):
            score_snapshots(run, tmp_path / "kept.json", MADE_WITH | change, 0, scorer)


def test_an_interruption_keeps_what_was_scored_before_it(run: Path, tmp_path: Path) -> None:
    begin(run)
    for step in (4, 8, 12):
        write_snapshot(run, step)
    seen: list[list[str]] = []

    def interrupted(step: int) -> None:
        seen.append(list(snapshots_in(tmp_path / "kept.json")) if step > 4 else [])
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer(interrupted))
    assert seen == [[], ["4"], ["4", "8"]]
    assert json.loads((tmp_path / "kept.json").read_text())["best"]["step"] == 8
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer)
    assert scorer.steps == [12]


@pytest.mark.parametrize("key", list(MADE_WITH))
def test_scores_that_were_made_otherwise_are_refused_and_left_alone(run: Path, tmp_path: Path, key: str) -> None:
    begin(run)
    write_snapshot(run, 4)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    before = (tmp_path / "kept.json").read_bytes()
    write_snapshot(run, 8)
    scorer = Scorer()
    with pytest.raises(UserError, match=rf"kept\.json: holds scores made with another {key}.*; choose another output"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH | {key: "other"}, 0, scorer)
    assert scorer.steps == []
    assert (tmp_path / "kept.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        '{"made_with": [], "snapshots": {"4": {}}}',
        '{"made_with": {}, "snapshots": {"4": {"iou": {}, "weights": ""}}}',
        "[]",
        "3",
        "{}",
        '{"made_with": {}}',
        '{"made_with": {}, "snapshots": {"four": {}}}',
        '{"snapshots": 1}',
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(run: Path, tmp_path: Path, content: str) -> None:
    begin(run)
    write_snapshot(run, 4)
    (tmp_path / "kept.json").write_text(content)
    with pytest.raises(UserError, match=r"kept\.json: .*it is no whole file of a run's scores: choose another output"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    assert (tmp_path / "kept.json").read_text() == content


def test_a_run_without_snapshots_says_what_to_do(run: Path, tmp_path: Path) -> None:
    begin(run)
    with pytest.raises(
        UserError, match=r"snapshots/r: no checkpoint yet that can be scored; wait for its snapshots wi"
    ):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    assert not (tmp_path / "kept.json").exists()


def test_a_folder_that_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    for wait_minutes in (0.0, 0.0005):
        with pytest.raises(UserError, match=r"snapshots/r: no run; expected a folder with config\.yaml"):
            score_snapshots(run, tmp_path / "kept.json", MADE_WITH, wait_minutes, Scorer())


def test_the_best_is_the_first_of_equals_and_one_without_a_score_counts_as_0() -> None:
    assert best_step({8: {"miou": 0.3}, 4: {"miou": 0.3}, 12: {"miou": 0.2}}) == 4
    assert best_step({4: {"miou": None}, 8: {"miou": 0.001}}) == 8
    assert best_step({8: {"miou": None}, 4: {"miou": None}}) == 4
    assert best_step({4: {"miou": None}, 8: {"miou": 0.0}}) == 4
