"""Every snapshot of a run is scored once; those to come are waited for; nothing that is scored is lost."""

import json
import shutil
import threading
from collections.abc import Callable
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
from esl_dist.engine import snapshots
from esl_dist.engine.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    SEGMENTATION,
    BrokenCheckpointError,
    checkpoint_folder,
    checkpoint_folders,
    save_checkpoint,
)
from esl_dist.engine.snapshots import best_step, score_snapshots, snapshot_steps
from esl_dist.errors import UserError
from esl_dist.files import sha256_of_file
from tests.builders import class_set
from tests.engine.runs import checkpoint, configuration, rewrite_as_version, save_state

MADE_WITH = {"data": "abc", "size": [8, 6], "statistics_from": None}
CHECKPOINTS = {"every": 2, "keep_every": 4, "keep_newest": 1}
LONG = 5.0
"""Minutes: more than any of these tests takes, so that what waits has to be woken."""


def begin(run: Path, steps: int = 12) -> None:
    """Write the settings of a run whose snapshots are 4, 8 and 12."""
    save_config(configuration(steps=steps, checkpoints=CHECKPOINTS), run / RUN_CONFIG)


def write_snapshot(run: Path, step: int, weight: float = 0.0) -> None:
    """Leave a whole checkpoint of a network with one weight; those before and after it stay."""
    elsewhere = run.parent / "elsewhere"
    saved = save_state(elsewhere, step, {"x": torch.full((1,), step + weight)}, configuration(steps=12), class_set())
    checkpoint_folder(run, step).parent.mkdir(parents=True, exist_ok=True)
    saved.rename(checkpoint_folder(run, step))


def weights_of(run: Path, step: int) -> str:
    return sha256_of_file(checkpoint_folder(run, step) / SEGMENTATION)


class Scorer:
    """Gives a score to a snapshot, and remembers of which it was asked."""

    def __init__(self, then: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[int] = []
        self.then = then

    def __call__(self, folder: Path) -> dict[str, Any]:
        assert (folder / MANIFEST).is_file()
        step = int(folder.name.removeprefix("step-"))
        self.steps.append(step)
        self.then(step)
        return {"miou": step / 100, "iou": {"road": None}}


def snapshots_in(kept: Path) -> dict[str, Any]:
    return json.loads(kept.read_text())["snapshots"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "snapshots/r"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "POLL_SECONDS", 0.005)


class Looks:
    """Tells another thread whether what is looked for was missed, and when it was found."""

    def __init__(self, plain: Callable[[list[bool]], list[bool]]) -> None:
        self.plain, self.missed, self.found = plain, threading.Event(), threading.Event()

    def __call__(self, flags: list[bool]) -> list[bool]:
        if len(flags) == 1:
            # No look for a file, but a question.
            return self.plain(flags)
        if flags[0]:
            self.missed.clear()
            self.found.set()
        else:
            self.missed.set()
        return self.plain(flags)

    def write_when_missed(self, write: Callable[[], None]) -> None:
        assert self.missed.wait(60)
        self.found.clear()
        write()
        assert self.found.wait(60)


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
    best = {"step": 12, "miou": 0.12, "iou": {"road": None}, "weights": weights_of(run, 12)}
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
    assert scores == first | {12: {"miou": 0.12, "iou": {"road": None}, "weights": weights_of(run, 12)}}
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
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer, lambda folder: folder.name.endswith("8"))
    assert scorer.steps == [4]


def test_snapshots_that_are_gone_or_broken_are_named_not_waited_for_and_have_no_score(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run)
    for step in (4, 8, 12):
        write_snapshot(run, step)
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    shutil.rmtree(checkpoint_folder(run, 4))
    (checkpoint_folder(run, 8) / SEGMENTATION).write_bytes(b"")
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
        ({"04": ONE}, r"snapshots\.04: expected its scores below its step"),
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
    with pytest.raises(UserError, match="step-00000004: format version 99"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())


def test_what_is_scored_later_has_its_place_among_the_others(run: Path, tmp_path: Path) -> None:
    begin(run)
    for step in (8, 4):
        write_snapshot(run, step)
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    assert list(snapshots_in(tmp_path / "kept.json")) == ["4", "8"]


def test_checkpoints_that_do_not_stay_and_unfinished_ones_are_passed_over(run: Path, tmp_path: Path) -> None:
    begin(run)
    for step in (2, 4, 6):
        write_snapshot(run, step)
    checkpoint_folder(run, 8).mkdir()
    (run / "checkpoints/step-00000012.partial").mkdir()
    (run / "checkpoints/step-00000012.partial" / MANIFEST).write_text("{}")
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, scorer)
    assert scorer.steps == [4]


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
    with pytest.raises(UserError, match=rf"kept\.json: holds scores made with another {key}; choose another output"):
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
    write_snapshot(run, 2)
    with pytest.raises(UserError, match=r"snapshots/r: no snapshot yet; wait for them with wait_minutes=…"):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0, Scorer())
    assert not (tmp_path / "kept.json").exists()


def test_a_folder_that_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    for wait_minutes in (0.0, 0.0005):
        with pytest.raises(UserError, match=r"snapshots/r: no run; expected a folder with config\.yaml"):
            score_snapshots(run, tmp_path / "kept.json", MADE_WITH, wait_minutes, Scorer())


def test_a_run_and_its_snapshots_are_waited_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another thread writes each of them only when it has been looked for in vain."""
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"made_with": MADE_WITH, "snapshots": {}}))
    looks = Looks(snapshots.from_main)
    monkeypatch.setattr(snapshots, "from_main", looks)

    def training() -> None:
        looks.write_when_missed(lambda: begin(run))
        for step in (4, 8, 12):
            looks.write_when_missed(lambda step=step: write_snapshot(run, step))

    thread = threading.Thread(target=training)
    thread.start()
    scorer = Scorer()
    scores = score_snapshots(run, kept, MADE_WITH, LONG, scorer)
    thread.join(60)
    assert scorer.steps == list(scores) == [4, 8, 12]
    waited = [run, *(checkpoint_folder(run, step) for step in (4, 8, 12))]
    assert capsys.readouterr().out == "".join(f"waiting for {path}\n" for path in waited), "each is named once"


def test_a_snapshot_that_does_not_come_in_time_is_named_and_the_scores_before_it_are_kept(
    run: Path, tmp_path: Path
) -> None:
    begin(run)
    write_snapshot(run, 4)
    with pytest.raises(
        UserError,
        match=r"step-00000008: not written within 0\.0005 minutes; is the training still running\? "
        r"Scores of the snapshots before it are kept",
    ):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0.0005, Scorer())
    assert list(snapshots_in(tmp_path / "kept.json")) == ["4"]


def test_every_snapshot_may_take_the_whole_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock starts anew for each: three that each take two of three minutes are waited for."""
    begin(run)
    now = [0.0]
    due = {4: 120.0, 8: 240.0, 12: 360.0}

    def minute_later(_: float) -> None:
        now[0] += 60
        for step, time in due.items():
            if now[0] >= time and not checkpoint_folder(run, step).exists():
                write_snapshot(run, step)

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        sleep = staticmethod(minute_later)

    monkeypatch.setattr(snapshots, "time", Clock)
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 3, scorer)
    assert scorer.steps == [4, 8, 12]
    assert now[0] == 360


def test_the_best_is_the_first_of_equals_and_one_without_a_score_counts_as_0() -> None:
    assert best_step({8: {"miou": 0.3}, 4: {"miou": 0.3}, 12: {"miou": 0.2}}) == 4
    assert best_step({4: {"miou": None}, 8: {"miou": 0.001}}) == 8
    assert best_step({8: {"miou": None}, 4: {"miou": None}}) == 4
    assert best_step({4: {"miou": None}, 8: {"miou": 0.0}}) == 4
