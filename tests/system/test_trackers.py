"""Other trackers beside TensorBoard: one that is real and keeps its files here, and one that is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from esl_dist.config_types import TRACKERS
from esl_dist.reporting.scalar_file import read_scalars
from tests.on_ranks import shared_server
from tests.programs import TINY_TRAINING

TRAIN = "launch/train.py"


def words(town: Path, experiments: Path, tracker: str) -> list[str]:
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    more = [f"experiments={experiments}", "name=r", "steps=4", f"trackers=[{tracker}]", "timeout_minutes=1"]
    return [*TINY_TRAINING, *data, *more]


def test_mlflow_gets_what_the_file_of_scalars_has_from_one_rank(town: Path, tmp_path: Path) -> None:
    store = {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/store", "MLFLOW_ALLOW_FILE_STORE": "true"}
    job = shared_server().start(TRAIN, words(town, tmp_path, "mlflow"), 2, store)
    assert job.exit_codes() == [0, 0], job.output()
    [run] = [path.parent for path in (tmp_path / "store").glob("*/*/meta.yaml")]
    about = yaml.safe_load((run / "meta.yaml").read_text())
    assert (about["run_name"], about["status"]) == ("r", 3), "it has finished"
    assert (run / "params/method.name").read_text() == "advent"
    lines = list(read_scalars(tmp_path / "logs/r/scalars.csv"))
    assert {step for step, _, _ in lines} == {2, 4}
    for tag in {tag for _, tag, _ in lines}:
        kept = [line.split() for line in (run / "metrics" / tag).read_text().splitlines()]
        assert [(int(step), float(value)) for _, value, step in kept] == [(s, v) for s, own, v in lines if own == tag]
    assert [path.name for path in (tmp_path / "logs/r").iterdir()] == ["scalars.csv"], "TensorBoard was not asked for"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_tracker_that_is_not_installed_is_one_message_before_anything_is_done(
    town: Path, tmp_path: Path, ranks: int
) -> None:
    name = next(one for one in TRACKERS if find_spec(one) is None)
    job = shared_server().start(TRAIN, words(town, tmp_path, name), ranks)
    assert job.exit_codes() == [2] * ranks, job.output()
    said = f"trackers: {name} needs a package that is not installed: pip install {name}, or leave it out"
    errors = [line for line in job.output().splitlines() if "error" in line]
    assert len(errors) == ranks
    assert all(line.endswith(said) for line in errors)
    assert "Traceback" not in job.output()
    assert not list(tmp_path.glob("snapshots/*/checkpoints/*"))
