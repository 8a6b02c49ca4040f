"""Networks are scored together only if they know the same classes, and see pictures at one size."""

from pathlib import Path

import pytest
import torch

from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.inference.scoring import Scoring, score_networks
from esl_dist.prediction.predictor import Predictor
from esl_dist.runs.trained import load_trained
from tests.builders import class_set, drawn_shards
from tests.training.small_runs import save_run

CPU = torch.device("cpu")


def test_networks_of_as_many_classes_of_other_names_are_no_ensemble(tmp_path: Path) -> None:
    road, house, sky = class_set()
    networks = []
    for name, classes in (("a", (road, house, sky)), ("b", (sky, house, road))):
        save_run(tmp_path / name, 1, classes=classes)
        networks.append(load_trained(tmp_path / name, {}, None, CPU))
    scoring = Scoring(drawn_shards(tmp_path / "shards", 1), None, None, tmp_path, Workers(0, 1))
    with pytest.raises(UserError, match="r and r have different classes; an ensemble needs the same"):
        score_networks([Predictor(one) for one in networks], scoring)


def test_networks_trained_at_different_sizes_are_an_ensemble_only_at_a_size_that_is_given(tmp_path: Path) -> None:
    for step in (1, 2):
        save_run(tmp_path / f"{step}", step)
    one, other = (load_trained(tmp_path / f"{step}", {}, None, CPU) for step in (1, 2))
    scoring = Scoring(drawn_shards(tmp_path / "shards", 1), None, None, tmp_path, Workers(0, 1))
    with pytest.raises(UserError, match=r"trained at different sizes; .* give it as data\.size="):
        score_networks([Predictor(one, size=(40, 36)), Predictor(other)], scoring)
