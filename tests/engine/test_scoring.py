"""Networks are scored together only if they know the same classes, and pictures stay in their folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esl_dist.config import Evaluate
from esl_dist.config_files import from_dictionary
from esl_dist.engine.scoring import picture_name, score_networks
from esl_dist.engine.trained import load_trained
from esl_dist.errors import UserError
from tests.builders import class_set, drawn_samples, drawn_shards, write_shards
from tests.engine.runs import save_run

CPU = torch.device("cpu")


def test_networks_of_as_many_classes_of_other_names_are_no_ensemble(tmp_path: Path) -> None:
    road, house, sky = class_set()
    networks = []
    for name, classes in (("a", (road, house, sky)), ("b", (sky, house, road))):
        save_run(tmp_path / name, 1, classes=classes)
        networks.append(load_trained(tmp_path / name, {}, None, CPU))
    shards = drawn_shards(tmp_path / "shards", 1)
    config = from_dictionary(Evaluate, {"data": {"path": str(tmp_path / "shards")}, "workers": 0}, "tests")
    with pytest.raises(UserError, match="r and r have different classes; an ensemble needs the same"):
        score_networks(networks, [1.0, 1.0], shards, config, None, CPU)


@pytest.mark.parametrize("key", ["../scene", "/scene", "a/../../scene"])
def test_a_key_that_leads_out_of_its_folder_names_no_picture(tmp_path: Path, key: str) -> None:
    [(_, members)] = drawn_samples(1)
    shards = write_shards(tmp_path, [("a/scene", members), ("b", members)])
    shards._places[1] = (0, replace(shards._places[1][1], key=key))
    assert picture_name(shards, 0) == "a/scene.png"
    with pytest.raises(UserError, match=rf"shard-000000\.tar, sample '{key}': its key leads out of a folder"):
        picture_name(shards, 1)
