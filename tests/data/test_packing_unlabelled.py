"""Pictures without labels, as a target may have: packed, read and labelled; nothing takes them for labelled ones."""

from pathlib import Path

import pytest
import torch

from esl_dist import config as settings
from esl_dist.config_files import load_config
from esl_dist.data.layouts import read_layout
from esl_dist.data.loading import LabelSource, Samples
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.shards import ShardReader, choose_classes, open_shards
from esl_dist.errors import UserError
from esl_dist.runs.trained import load_trained
from tests.builders import SPLIT, drawn_shards, no_progress, write_description, write_pictures
from tests.programs import succeed
from tests.training.small_runs import save_run


def packed(folder: Path) -> ShardReader:
    write_pictures(folder / "pictures", ["a", "b", "c"])
    for label in (folder / "pictures" / SPLIT / "labels").iterdir():
        label.unlink()
    description = write_description(folder / "pictures", label=None, class_sets={}, ignore_ids=[])
    layout = read_layout(description, SPLIT)
    pack(layout, folder / "shards", Encoding(None, None, "keep", 95), 1, no_progress)
    return open_shards(folder / "shards")


def test_pictures_are_packed_without_labels_and_read(tmp_path: Path) -> None:
    shards = packed(tmp_path)
    assert list(shards.keys()) == ["a", "b", "c"]
    assert all(list(sample.members) == ["image.png"] for shard in shards.index.shards for sample in shard.samples)
    assert Samples(shards, None)[0]["pictures"].shape == (12, 16, 3)


@pytest.mark.parametrize("changes", [{"label": None}, {"class_sets": {}}])
def test_labels_without_classes_and_classes_without_labels_are_refused(tmp_path: Path, changes: dict) -> None:
    write_pictures(tmp_path, ["a"])
    with pytest.raises(UserError, match=r"village\.yaml: expected label and class_sets, or neither"):
        read_layout(write_description(tmp_path, **changes), SPLIT)


def test_they_cannot_be_taken_for_labelled_ones(tmp_path: Path) -> None:
    shards = packed(tmp_path)
    with pytest.raises(UserError, match="its pictures have no labels, hence no class set"):
        choose_classes(shards, None)
    _, classes = choose_classes(drawn_shards(tmp_path / "labelled", 1), None)
    with pytest.raises(UserError, match=r"sample 'a': no label; it has image\.png"):
        Samples(shards, None, LabelSource(shards, classes))[0]


def test_a_run_s_network_labels_them(tmp_path: Path) -> None:
    packed(tmp_path)
    run = tmp_path / "experiments/snapshots/r"
    save_run(run, 1)
    assert load_trained(run, {}, None, torch.device("cpu")).class_set == "village3"
    words = [f"checkpoint={run}", f"target.path={tmp_path}/shards", f"output={tmp_path}/labels", "workers=0"]
    assert load_config(settings.PseudoLabel, None, words).compare_with_labels is False
    succeed("launch/pseudo_label.py", *words)
    assert list(open_shards(tmp_path / "labels").keys()) == ["a", "b", "c"]
