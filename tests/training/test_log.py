"""What a training shows in TensorBoard of the steps between two entries."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.adaptation.optimisers import Rates
from esl_dist.reporting.scores import ScoreEntries
from esl_dist.runs.validations import Figures
from esl_dist.training import log
from esl_dist.training.log import Interval, TrainingLog

Step = tuple[float, bool]
"""A step's loss, and whether the networks were updated in it."""


def add(to: TrainingLog, steps: Sequence[Step]) -> None:
    for loss, updated in steps:
        to.add({"source": torch.tensor(loss)}, updated)


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_entry_shows_the_mean_losses_the_speed_and_the_skipped_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    written = TrainingLog(tmp_path, "r", 6, 4)
    spans: list[tuple[int, float, list[Step]]] = [
        (7, 6.0, [(1.0, True), (math.nan, False), (3.0, True)]),
        (9, 3.0, [(math.inf, False), (math.nan, False)]),
        (10, 2.0, [(8.0, True)]),
    ]
    for step, seconds, steps in spans:
        add(written, steps)
        now[0] += seconds
        written.write(step, written.mean_losses(), Rates(0.25, {"stem": 0.25}), {"target": 1})
    written.close()
    assert shown(tmp_path) == {
        "loss/source": [(7, 2.0), (10, 8.0)],
        "learning_rate/stem": [(7, 0.25), (9, 0.25), (10, 0.25)],
        "speed/samples_per_second": [(7, 3.0), (9, 4.0), (10, 3.0)],
        "corrupt_samples/target": [(7, 1.0), (9, 1.0), (10, 1.0)],
        "precision/skipped_steps": [(7, 1.0), (9, 2.0), (10, 0.0)],
    }


@pytest.mark.parametrize("cut", range(6))
def test_an_interval_that_is_cut_anywhere_goes_on_as_if_it_were_not(tmp_path: Path, cut: int) -> None:
    """The sums of float32 losses would show the cut."""
    steps = [(0.1, True), (1e-4, True), (math.nan, False), (3.3, True), (7e-6, True)]
    before, whole = (TrainingLog(tmp_path / name, "r", 1, 0) for name in ("cut", "whole"))
    add(whole, steps)
    add(before, steps[:cut])
    after = TrainingLog(tmp_path / "cut", "r", 1, cut, before.interval())
    add(after, steps[cut:])
    assert after.interval() == whole.interval()
    assert after.mean_losses() == whole.mean_losses()
    expected = sum(float(torch.tensor(loss)) for loss, updated in steps if updated)
    assert whole.interval() == {"losses": {"source": pytest.approx(expected, rel=1e-15)}, "updates": 4, "skipped": 1}


def test_behind_an_entry_an_interval_is_empty(tmp_path: Path) -> None:
    written = TrainingLog(tmp_path, "r", 1, 0, Interval(losses={"source": 2.0}, updates=1, skipped=3))
    add(written, [(4.0, True)])
    assert written.mean_losses() == {"source": 3.0}
    written.write(5, {}, Rates(0.0, {}), {})
    assert written.interval() == {"losses": {}, "updates": 0, "skipped": 0}
    written.close()
    assert shown(tmp_path)["precision/skipped_steps"] == [(5, 3.0)]


def test_what_is_left_out_does_not_slow_the_steps_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    written = TrainingLog(tmp_path, "r", 6, 0)
    add(written, [(1.0, True), (1.0, True)])
    now[0] += 33.0
    written.leave_out(30.0)
    written.write(2, written.mean_losses(), Rates(0.25, {}), {})
    written.close()
    assert shown(tmp_path)["speed/samples_per_second"] == [(2, 4.0)]


def test_a_validation_is_shown_at_its_step_without_what_it_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = TrainingLog(tmp_path, "r", 6, 0)
    scores = ScoreEntries(0.5, {"road": 0.5, "sky": None})
    written.write_validation(4, Figures(0.25, 0.75, None, scores), is_best=True)
    written.write_validation(8, Figures(0.5, 0.5, 0.125), is_best=False)
    written.close()
    assert shown(tmp_path) == {
        "validation/miou": [(4, 0.5)],
        "validation/entropy": [(4, 0.25), (8, 0.5)],
        "validation/kept": [(4, 0.75), (8, 0.5)],
        "validation/agreement": [(8, 0.125)],
        "validation_iou/road": [(4, 0.5)],
    }
    assert capsys.readouterr().err.splitlines() == [
        "r: validation at step 4: mIoU 50.0, entropy 25.0, kept 75.0, the best so far",
        "r: validation at step 8: entropy 50.0, kept 50.0, agreement 12.5",
    ]
