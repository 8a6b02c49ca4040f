"""What a training shows in TensorBoard of the steps between two entries."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from esl_dist.adaptation.optimisers import Rates
from esl_dist.errors import UserError
from esl_dist.reporting import trackers
from esl_dist.reporting.curves import Curves
from esl_dist.reporting.scores import ScoreEntries
from esl_dist.reporting.tensorboard import LAST_SCORE, SCORES
from esl_dist.runs.validations import Figures
from esl_dist.training import log
from esl_dist.training.log import Interval, TrainingLog
from tests.training.small_runs import configuration

Step = tuple[float, bool]
"""A step's loss, and whether the networks were updated in it."""


def add(to: TrainingLog, steps: Sequence[Step]) -> None:
    for loss, updated in steps:
        to.add({"source": torch.tensor(loss)}, updated)


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    memory = curves.pop("memory/resident_gigabytes", [])
    assert all(0.05 < value < 100 for _, value in memory)
    return curves


def test_an_entry_shows_the_mean_losses_the_speed_and_the_skipped_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    written = TrainingLog(Curves(tmp_path, 4), "r", 6, 4)
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
        "speed/waiting_for_data": [(7, 0.0), (9, 0.0), (10, 0.0)],
        "corrupt_samples/target": [(7, 1.0), (9, 1.0), (10, 1.0)],
        "precision/skipped_steps": [(7, 1.0), (9, 2.0), (10, 0.0)],
    }


@pytest.mark.parametrize("cut", range(6))
def test_an_interval_that_is_cut_anywhere_goes_on_as_if_it_were_not(tmp_path: Path, cut: int) -> None:
    """The sums of float32 losses would show the cut."""
    steps = [(0.1, True), (1e-4, True), (math.nan, False), (3.3, True), (7e-6, True)]
    before, whole = (TrainingLog(Curves(tmp_path / name, 0), "r", 1, 0) for name in ("cut", "whole"))
    add(whole, steps)
    add(before, steps[:cut])
    after = TrainingLog(Curves(tmp_path / "cut", cut), "r", 1, cut, before.interval())
    add(after, steps[cut:])
    assert after.interval() == whole.interval()
    assert after.mean_losses() == whole.mean_losses()
    expected = sum(float(torch.tensor(loss)) for loss, updated in steps if updated)
    assert whole.interval() == {"losses": {"source": pytest.approx(expected, rel=1e-15)}, "updates": 4, "skipped": 1}


def test_behind_an_entry_an_interval_is_empty(tmp_path: Path) -> None:
    written = TrainingLog(Curves(tmp_path, 0), "r", 1, 0, Interval(losses={"source": 2.0}, updates=1, skipped=3))
    add(written, [(4.0, True)])
    assert written.mean_losses() == {"source": 3.0}
    written.write(5, {}, Rates(0.0, {}), {})
    assert written.interval() == {"losses": {}, "updates": 0, "skipped": 0}
    written.close()
    assert shown(tmp_path)["precision/skipped_steps"] == [(5, 3.0)]


def test_what_is_left_out_does_not_slow_the_steps_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    written = TrainingLog(Curves(tmp_path, 0), "r", 6, 0)
    add(written, [(1.0, True), (1.0, True)])
    now[0] += 33.0
    written.leave_out(30.0)
    written.write(2, written.mean_losses(), Rates(0.25, {}), {})
    written.close()
    assert shown(tmp_path)["speed/samples_per_second"] == [(2, 4.0)]


def test_a_validation_is_shown_at_its_step_without_what_it_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = TrainingLog(Curves(tmp_path, 0), "r", 6, 0)
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


def shares(part: int, whole: int) -> dict[str, torch.Tensor]:
    return {"share of teacher/trusted": torch.tensor([part, whole]), "seen": torch.tensor([9])}


@pytest.mark.parametrize("cut", range(4))
def test_a_share_is_that_of_all_steps_that_updated_wherever_the_interval_is_cut(tmp_path: Path, cut: int) -> None:
    steps = [(1, 4, True), (9, 9, False), (2, 4, True)]
    written = TrainingLog(Curves(tmp_path / "before", 0), "r", 1, 0)
    for part, whole, updated in steps[:cut]:
        written.add({"source": torch.tensor(1.0)}, updated, shares(part, whole))
    after = TrainingLog(Curves(tmp_path / "after", 0), "r", 1, 0, written.interval())
    for part, whole, updated in steps[cut:]:
        after.add({"source": torch.tensor(1.0)}, updated, shares(part, whole))
    assert after.interval()["shares"] == {"teacher/trusted": [3, 8]}
    after.write(3, after.mean_losses(), Rates(0.0, {}), {})
    assert shown(tmp_path / "after")["teacher/trusted"] == [(3, 0.375)]
    assert "seen" not in after.interval().get("shares", {})


def test_norms_of_gradients_are_shown_where_they_are_finite(tmp_path: Path) -> None:
    written = TrainingLog(Curves(tmp_path, 0), "r", 1, 0)
    norms = {"segmentation": torch.tensor(2.5), "discriminators": torch.tensor(math.inf)}
    written.write(1, {}, Rates(0.0, {}), {}, norms)
    assert {tag: value for tag, value in shown(tmp_path).items() if "norm" in tag} == {
        "gradient_norm/segmentation": [(1, 2.5)]
    }


def test_the_time_that_a_rank_waits_for_samples_and_what_it_computes_are_shares_of_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])

    def slow() -> Iterator[int]:
        for number in range(3):
            now[0] += 2.0
            yield number

    written = TrainingLog(Curves(tmp_path, 0), "r", 6, 0)
    written.measure_on(torch.device("cpu"), 1e12)
    written.work.flops = 3 * 10**12
    samples = written.waited_for(slow())
    for step in (1, 2):
        assert next(samples) == step - 1
        add(written, [(1.0, True)])
        now[0] += 6.0
    written.write(2, {}, Rates(0.0, {}), {})
    curves = shown(tmp_path)
    assert curves["speed/waiting_for_data"] == [(2, 0.25)]
    assert curves["speed/tflops"] == [(2, pytest.approx(2 * 3 / 16))]
    assert curves["speed/mfu"] == [(2, pytest.approx(2 * 3 / 16))]


def test_a_finished_run_has_its_settings_beside_its_last_losses_and_scores(tmp_path: Path) -> None:
    config = configuration(source={"path": "https://a.b/shards?token=hidden"}, steps=8)
    written = TrainingLog(Curves(tmp_path, 0), "r", 1, 0)
    scores = [ScoreEntries(miou, {"road": miou}) for miou in (0.5, 0.25)]
    for step, one in zip((4, 8), scores, strict=True):
        add(written, [(1.0, True)])
        written.write(step, written.mean_losses(), Rates(0.0, {}), {})
        written.write_validation(step, Figures(0.5, 0.5, None, one), is_best=step == 4)
    written.finish(8, config, ["source"], Figures(0.5, 0.5, None, scores[0]))
    written.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    content = events.summary_metadata
    begun = HParamsPluginData.FromString(content["_hparams_/session_start_info"].plugin_data.content)
    told = begun.session_start_info.hparams
    assert (told["steps"].number_value, told["network.architecture"].string_value) == (8, "tiny")
    assert told["compile"].string_value == "false"
    assert "hidden" not in str(begun)
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"].plugin_data.content).experiment
    *own, score = experiment.metric_infos
    assert (score.name.group, score.name.tag) == (SCORES, LAST_SCORE), "of evaluations that are to come"
    metrics = [info.name.tag for info in own]
    assert metrics == ["loss/source", "validation/miou", "validation/best_miou"]
    assert [events.Scalars(tag)[-1].value for tag in metrics] == [1.0, 0.25, 0.5]


class Away:
    """Stands for a tracker that cannot begin."""

    def start(self) -> None:
        raise ConnectionError("no way to there")


def test_a_tracker_that_cannot_begin_ends_a_run_at_its_beginning_and_later_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "_tracker", lambda *arguments: Away())
    config = configuration(trackers=["tensorboard", "mlflow"])
    expected = "trackers: mlflow cannot begin: ConnectionError: no way to there; set it up, or leave it out"
    with pytest.raises(UserError, match=expected):
        log.open_curves(config, tmp_path, 0)
    curves = log.open_curves(config, tmp_path, 4)
    assert curves is not None
    curves.write({"loss": {"main": 0.5}}, 5)
    curves.close()
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: tracker mlflow: ConnectionError: no way to there;")
