"""Other trackers get what a run tells; one that fails or hangs costs a warning, and nothing else."""

import threading
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from esl_dist import config as settings
from esl_dist.config_types import TENSORBOARD, TRACKERS
from esl_dist.errors import UserError
from esl_dist.reporting import trackers
from esl_dist.reporting.curves import Curves, flat_settings
from esl_dist.reporting.trackers import begin_trackers
from esl_dist.training import log
from tests.training.small_runs import configuration


class Heard(tracking.GeneralTracker):
    """Stands for a tracker somewhere else: notes what it is told, and fails or hangs where it is to."""

    name, requires_logging_directory, tracker = "wandb", False, None

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.said: list[Any] = [("made", project, options)]
        self.fails_at, self.goes_on = "", threading.Event()
        made.append(self)
        self.goes_on.set()

    def _hear(self, *said: Any) -> None:
        self.goes_on.wait(60)
        if said[0] == self.fails_at:
            raise ConnectionError("no way to there\nmore of it")
        self.said.append(said)

    def start(self) -> None:
        self._hear("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._hear("settings", values)

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        self._hear("log", step, values)

    def finish(self) -> None:
        self._hear("finish")


made: list[Heard] = []


@pytest.fixture(autouse=True)
def wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Heard)


def opened(folder: Path, warnings: list[str], **options: Any) -> Curves:
    begun = begin_trackers(["wandb"], "r", folder, {"steps": 3})
    for name, value in options.items():
        setattr(made[0], name, value)
    return Curves(folder, 0, with_tensorboard=False, others=begun, warn=warnings.append)


def test_a_tracker_gets_name_settings_scalars_and_the_end(tmp_path: Path) -> None:
    warnings: list[str] = []
    curves = opened(tmp_path, warnings)
    curves.write({"loss": {"main": 0.5, "other": 1.0}, "speed": {}}, 20)
    curves.write({"validation": {"miou": 0.25}}, 40)
    curves.close()
    assert made[0].said == [
        ("made", "esl-dist", {"name": "r", "dir": str(tmp_path)}),
        ("start",),
        ("settings", {"steps": 3}),
        ("log", 20, {"loss/main": 0.5, "loss/other": 1.0}),
        ("log", 40, {"validation/miou": 0.25}),
        ("finish",),
    ]
    assert warnings == []


@pytest.mark.parametrize("where", ["log", "finish"])
def test_a_tracker_that_fails_costs_one_warning_and_the_other_curves_go_on(tmp_path: Path, where: str) -> None:
    warnings: list[str] = []
    curves = opened(tmp_path, warnings, fails_at=where)
    for step in range(1, 4):
        curves.write({"loss": {"main": 0.5}}, step)
    curves.close()
    said = "tracker wandb: ConnectionError: no way to there; it gets nothing more, and training goes on"
    assert warnings == [said]
    assert (tmp_path / "scalars.csv").read_text().count("loss/main") == 3


def test_nobody_waits_for_a_tracker_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "LONGEST_END", 0.0)
    warnings: list[str] = []
    curves = opened(tmp_path, warnings)
    made[0].goes_on.clear()
    curves.write({"loss": {"main": 0.5}}, 1)
    curves.close()
    made[0].goes_on.set()
    assert warnings == [
        "tracker wandb: it has not taken its last values in time; it gets nothing more, and training goes on"
    ]


def test_a_tracker_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heard, "start", lambda self: self._hear(self.fails_at))
    [begun] = begin_trackers(["wandb"], "r", tmp_path, {})
    assert begun.failure == "ConnectionError: no way to there"


def test_one_that_cannot_begin_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Heard) -> None:
        self._hear("start" if len(made) == 1 else self.fails_at)

    monkeypatch.setattr(Heard, "start", start)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Heard)
    config = configuration(trackers=["wandb", "mlflow"], name="r")
    monkeypatch.setattr(log, "refuse_missing_trackers", lambda names: None)
    with pytest.raises(UserError, match="trackers: mlflow cannot begin"):
        log.open_curves(config, tmp_path, 0)
    assert made[0].said[-1] == ("finish",)


def test_settings_go_out_by_their_names_and_without_secrets() -> None:
    flat = flat_settings(configuration(source={"path": "https://u:p@a.b/shards?token=hidden"}, compile=True))
    assert (flat["batch_size"], flat["method.name"], flat["compile"]) == (3, "advent", "true")
    assert (flat["pseudo_labels"], flat["loader.skip_corrupt"]) == ("null", 0.0)
    assert flat["source.path"] == "https://…@a.b/shards?…"
    assert {type(value) for value in flat.values()} <= {str, int, float}


def test_the_trackers_that_may_be_asked_for_are_those_of_accelerate() -> None:
    assert set(TRACKERS) == {TENSORBOARD, *map(str, tracking.LOGGER_TYPE_TO_CLASS)}
    assert settings.Train().trackers == [TENSORBOARD]


def test_mlflow_takes_the_scalars_of_classes_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    warnings: list[str] = []
    begun = begin_trackers(["mlflow"], "r", tmp_path / "logs", {"steps": 3})
    curves = Curves(tmp_path, 0, with_tensorboard=False, others=begun, warn=warnings.append)
    names = {
        "sky & clouds": "sky _ clouds",
        "sky + clouds": "sky _ clouds 2",
        "road//lane/": "road/_/lane/_",
        "Straße": "Straße",
        "..": "_",
    }
    curves.write({"iou": dict.fromkeys(names, 0.5)}, 1)
    curves.write({"loss": {"x": 0.5}}, 2)
    curves.close()
    assert warnings == []
    [metrics] = (tmp_path / "store").glob("*/*/metrics")
    kept = {str(file.relative_to(metrics)) for file in metrics.rglob("*") if file.is_file()}
    assert kept == {"loss/x", *(f"iou/{name}" for name in names.values())}
