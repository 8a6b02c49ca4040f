"""Checkpoints: whole or absent, found newest first, refused when damaged, pruned."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from esl_dist import config as settings
from esl_dist.data.labels import SemanticClass
from esl_dist.engine.checkpoints import (
    Checkpoint,
    build_network,
    checkpoint_folders,
    find_checkpoint,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
)
from esl_dist.errors import UserError

CLASSES = (SemanticClass("road", (1, 2, 3), (7, 8)), SemanticClass("sky", (4, 5, 6), (23,)))
KEEP_ALL = settings.Checkpoints(keep_newest=100)


def checkpoint(step: int) -> Checkpoint:
    overrides = {
        "name": "run",
        "source": {"path": "s"},
        "target": {"path": "t"},
        "network": {"architecture": "tiny", "batch_norm": "per_domain"},
    }
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings.Train), overrides))
    torch.manual_seed(step)
    segmentation = build_network(config.network, CLASSES).state_dict()
    return Checkpoint(
        step=step,
        config=config,
        class_set="two",
        classes=CLASSES,
        shards={"source": "a", "target": "b"},
        segmentation=segmentation,
        discriminators={"main.0.weight": torch.full((2, 2), float(step))},
        training={"optimizers": {"segmentation": {"state": {0: {"momentum": torch.ones(3)}}}}, "scaler": {}},
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = checkpoint(4)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, KEEP_ALL))
    assert (loaded.step, loaded.config, loaded.classes, loaded.shards) == (4, saved.config, CLASSES, saved.shards)
    assert all(torch.equal(loaded.segmentation[name], tensor) for name, tensor in saved.segmentation.items())
    assert torch.equal(loaded.discriminators["main.0.weight"], saved.discriminators["main.0.weight"])
    assert torch.equal(loaded.training["optimizers"]["segmentation"]["state"][0]["momentum"], torch.ones(3))


@pytest.mark.parametrize("name", ["segmentation.safetensors", "discriminators.safetensors", "training.pt"])
@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing"])
def test_a_damaged_file_is_refused_and_the_one_before_is_the_newest(tmp_path: Path, name: str, damage: str) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    broken = save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    content = bytearray((broken / name).read_bytes())
    if damage == "missing":
        (broken / name).unlink()
    elif damage == "truncated":
        (broken / name).write_bytes(content[:-1])
    else:
        content[-1] ^= 1
        (broken / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: missing or not the bytes that were saved"):
        load_checkpoint(broken)
    assert newest_whole(tmp_path) == before


def test_a_save_that_was_interrupted_is_no_checkpoint_and_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(UserError, match=r"step-00000002: cannot be written .*No space left .*make room"):
            save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    assert newest_whole(tmp_path) == before
    assert newest_whole(tmp_path) != save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    assert load_checkpoint(find_checkpoint(tmp_path)).step == 2


def test_the_newest_and_every_so_many_steps_stay(tmp_path: Path) -> None:
    for step in range(1, 11):
        save_checkpoint(tmp_path, checkpoint(step), settings.Checkpoints(keep_newest=2, keep_every=4))
    assert [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(tmp_path)] == [4, 8, 9, 10]


def test_a_broken_later_checkpoint_does_not_cost_the_one_just_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(4), KEEP_ALL)
    broken = save_checkpoint(tmp_path, checkpoint(6), KEEP_ALL)
    (broken / "training.pt").unlink()
    saved = save_checkpoint(tmp_path, checkpoint(5), settings.Checkpoints(keep_newest=1))
    assert checkpoint_folders(tmp_path) == [saved]


def test_a_checkpoint_of_another_format_version_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="format version 99, this program reads 2"):
        load_checkpoint(folder)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return shutil.rmtree, (str(tmp_path),)

    saved = checkpoint(1)
    saved.training["trap"] = Trap()
    folder = save_checkpoint(tmp_path, saved, KEEP_ALL)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        load_checkpoint(folder)
    assert folder.exists()


def test_a_folder_without_checkpoints_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint; expected a run folder"):
        find_checkpoint(tmp_path)
    assert newest_whole(tmp_path) is None
