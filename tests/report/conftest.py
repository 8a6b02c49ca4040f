"""A small experiment as its programs leave it: two runs, the second with pseudo-labels of the first, and scores."""

from pathlib import Path

import pytest

from esl_dist.config import Report
from tests.programs import TINY_TRAINING, succeed

RUNS = ("advent", "advent_esl")


@pytest.fixture(scope="session")
def experiments(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the experiment; no test changes it."""
    folder = tmp_path_factory.mktemp("experiments")
    data = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    words = [*data, f"experiments={folder}", "steps=4", "method.name=advent", *TINY_TRAINING]
    validation = [f"validation.path={town}/target_val", "validate_every=2"]
    succeed("launch/train.py", *words, *validation, "name=advent")
    labels = [f"target.path={town}/target_train", f"output={folder}/labels", "entropy_floor=0.95"]
    both = ["compare_with_labels=true", "count_both_scores=true", "confidence_ceiling=0.3", "workers=0"]
    succeed("launch/pseudo_label.py", f"checkpoint={folder}/snapshots/advent", *labels, *both)
    start = [f"network.start={folder}/snapshots/advent", f"pseudo_labels={folder}/labels"]
    succeed("launch/train.py", *words, *start, "name=advent_esl")
    for name in RUNS:
        places = [f"checkpoint={folder}/snapshots/{name}", f"data.path={town}/target_val"]
        succeed("launch/evaluate.py", *places, f"output={folder}/scores/{name}.json", "workers=0")
    return folder


@pytest.fixture
def settings(experiments: Path, tmp_path: Path) -> Report:
    """Return the settings of a report of both runs."""
    runs = [str(experiments / "snapshots" / name) for name in RUNS]
    return Report(runs=runs, pictures=4, output=str(tmp_path / "report.html"))
