"""Pictures that a layer or the memory cannot take are refused before a training begins, and no others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esl_dist.adaptation.methods import METHODS
from esl_dist.config import Evaluate
from esl_dist.config_files import from_dictionary
from esl_dist.data.workers import READ_AHEAD
from esl_dist.environment import Launch
from esl_dist.errors import UserError
from esl_dist.inference.evaluation import evaluate
from esl_dist.models.deeplab import feature_size
from esl_dist.models.discriminator import LEAST_SIDE, build_discriminator
from esl_dist.models.resizing import upsample
from esl_dist.training import sizes
from esl_dist.training.data import open_training_data
from esl_dist.training.sizes import refuse_impossible_sizes, refuse_impossible_validation
from esl_dist.training.validation import open_validation
from tests.builders import drawn_samples, write_shards
from tests.training.small_runs import configuration, save_run, tiny_network

CPU = torch.device("cpu")
ALONE = Launch(0, 1, 1)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", drawn_samples(2), image_size=(16, 12), label_size=(16, 12))
    return tmp_path / "shards"


def checked(
    shards: Path, source: list[int] | None, target: list[int] | None, name: str = "minent", **more: Any
) -> None:
    config = configuration(
        **{"method": {"name": name}, **more},
        source={"path": str(shards), "size": source},
        target={"path": str(shards), "size": target},
    )
    refuse_impossible_sizes(config, METHODS[name], open_training_data(config, METHODS[name]), CPU, ALONE)


@pytest.mark.parametrize("size", [[1, 1], [8, 8], [24, 24], [32, 24], [31, 64], [640, 31]])
def test_pictures_too_small_for_a_discriminator_are_refused_by_setting(shards: Path, size: list[int]) -> None:
    message = r"^{}\.size=\[.*\]: method\.name=advent needs pictures of at least 32×32 pixels; give such a {}\.size="
    with pytest.raises(UserError, match=message.format("source", "source")):
        checked(shards, size, [32, 32], "advent")
    with pytest.raises(UserError, match=message.format("target", "target")):
        checked(shards, [32, 32], size, "advent")
    checked(shards, size, size)


@pytest.mark.parametrize("host", ["advent", "minent", "self_training"])
def test_masked_consistency_needs_pictures_as_large_as_its_host_does(shards: Path, host: str) -> None:
    method = {"name": "masked_consistency", "host": host, "masks": {"block": 4}}
    if host == "advent":
        with pytest.raises(UserError, match=r"method\.host=advent needs pictures of at least 32×32 pixels"):
            checked(shards, [24, 24], [24, 24], "masked_consistency", method=method)
    else:
        checked(shards, [24, 24], [24, 24], "masked_consistency", method=method)


@pytest.mark.parametrize("name", ["masked_consistency", "self_training"])
def test_pictures_of_two_sizes_that_would_be_mixed_are_refused(shards: Path, name: str) -> None:
    message = r"^method\.mix=true .* have 48×32 and 32×32 pixels: give source\.size and target\.size the same"
    method = {"name": name, "masks": {"block": 8}}
    with pytest.raises(UserError, match=message):
        checked(shards, [48, 32], [32, 32], name, method=method)
    checked(shards, [48, 32], [48, 32], name, method=method)
    checked(shards, [48, 32], [32, 32], name, method={**method, "mix": False})
    checked(shards, [48, 32], [32, 32], "advent")
    advent = {"name": "masked_consistency", "host": "advent", "masks": {"block": 8}}
    checked(shards, [48, 32], [32, 32], "masked_consistency", method=advent)


def test_blocks_that_hide_whole_pictures_are_refused(shards: Path) -> None:
    method = {"name": "masked_consistency", "masks": {"block": 32}}
    with pytest.raises(
        UserError, match=r"^target\.size=\[64, 40\]: method\.masks\.block=32 hides whole pictures of 64×40"
    ):
        checked(shards, [64, 40], [64, 40], "masked_consistency", method=method)
    checked(shards, [64, 48], [64, 48], "masked_consistency", method=method)
    checked(shards, [64, 40], [64, 40], "self_training", method={**method, "name": "self_training"})


def test_pictures_that_are_too_small_as_packed_are_refused_by_their_shards(shards: Path) -> None:
    with pytest.raises(UserError, match=rf"^{shards}: method\.name=advent needs pictures .* such a target\.size="):
        checked(shards, [32, 32], None, "advent")


def test_a_single_value_a_channel_is_refused(shards: Path) -> None:
    message = (
        r"^target\.size=\[6, 1\]: a single picture of 6×1 pixels gives batch norm one .* at least 7 pixels on a side"
    )
    with pytest.raises(UserError, match=message):
        checked(shards, [7, 1], [6, 1], batch_size=1)
    with pytest.raises(UserError, match=r"^target\.size"):
        checked(shards, [7, 1], [6, 1], batch_size=3, accumulate=3)
    checked(shards, [7, 1], [6, 1], batch_size=2)
    with pytest.raises(UserError, match=r"^target\.size.*: give a larger target\.size$"):
        checked(shards, [7, 1], [6, 1], batch_size=2, network={"architecture": "tiny", "normalise_over": "picture"})


@pytest.mark.parametrize("name", ["legacy_seresnet18", "skresnet18"])
def test_a_norm_over_pooled_maps_is_refused_where_it_sees_one_picture(shards: Path, name: str) -> None:
    network = {"architecture": f"timm/{name}", "auxiliary_head": False}
    message = r"^source\.size=\[64, 48\]: batch norm over one value a channel .*batch_size .*another network\.architec"
    checked(shards, [64, 48], [64, 48], batch_size=2, network=network)
    if name == "skresnet18":
        with pytest.raises(UserError, match=message):
            checked(shards, [64, 48], [64, 48], batch_size=1, network=network)
        with pytest.raises(UserError, match=message):
            checked(shards, [64, 48], [64, 48], batch_size=2, network={**network, "normalise_over": "picture"})
    else:
        checked(shards, [64, 48], [64, 48], batch_size=1, network=network)


def test_a_validation_whose_pictures_the_network_does_not_take_is_refused_before_the_training(shards: Path) -> None:
    network = {"architecture": "timm/swin_tiny_patch4_window7_224", "auxiliary_head": False}
    validation = {"path": str(shards), "size": [64, 48]}
    config = configuration(network=network, validation=validation, validate_every=1, source={"path": str(shards)})
    method = METHODS["source_only"]
    data = open_training_data(config, method)

    def check(size: list[int] | None) -> None:
        options = replace(config, validation=replace(config.validation, size=size))
        refuse_impossible_validation(config.network, data.classes, open_validation(options, data))

    message = r"^validations on {}: timm/swin.* does not take pictures of {} \(.*\); give another validation\.size$"
    with pytest.raises(UserError, match=message.format(shards, "64×48")):
        check([64, 48])
    with pytest.raises(UserError, match=message.format(shards, "16×12")):
        check(None)
    check([224, 224])
    refuse_impossible_validation(config.network, data.classes, None)


def test_statistics_are_not_estimated_from_single_values(tmp_path: Path, shards: Path) -> None:
    save_run(tmp_path / "run", 1, configuration(batch_size=1))
    places = {"checkpoint": str(tmp_path / "run"), "statistics_from": str(shards)}
    values = {**places, "data": {"path": str(shards), "size": [1, 1]}, "workers": 0}
    with pytest.raises(
        UserError, match=r"^statistics_from: a single picture of 1×1 pixels .*data\.size=\[width,height\]"
    ):
        evaluate(from_dictionary(Evaluate, values, "tests"), CPU)


def test_the_least_side_is_that_of_the_discriminator() -> None:
    discriminator = build_discriminator(3, 2)
    assert discriminator(torch.zeros(1, 3, LEAST_SIDE, LEAST_SIDE)).numel() == 1
    for height, width in ((LEAST_SIDE - 1, 64), (64, LEAST_SIDE - 1)):
        with pytest.raises(RuntimeError, match="Kernel size"):
            discriminator(torch.zeros(1, 3, height, width))


@torch.inference_mode()
def test_the_size_of_features_is_that_of_the_network() -> None:
    network = tiny_network(1)
    for side in range(1, 40):
        height, width = network(torch.zeros(1, 3, side, 40 - side))["main"].shape[2:]
        assert (height, width) == (feature_size(side), feature_size(40 - side))


@pytest.mark.parametrize("size", [(1, 1), (6, 6), (7, 1), (8, 8)])
@pytest.mark.parametrize("pictures", [1, 2])
def test_batch_norm_fails_where_it_is_said_to(size: tuple[int, int], pictures: int) -> None:
    def run() -> None:
        tiny_network(1).train()(torch.zeros(pictures, 3, size[1], size[0]))

    if pictures == 1 and max(size) < 7:
        with pytest.raises(UserError, match="batch norm over one value a channel"):
            run()
        with pytest.raises(UserError):
            tiny_network(1).train().refuse_size(size, pictures, "here", "there")
    else:
        run()
        tiny_network(1).train().refuse_size(size, pictures, "here", "there")
    tiny_network(1).eval().refuse_size(size, pictures, "here", "there")


def test_the_least_memory_is_less_than_what_a_pass_keeps() -> None:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, network = torch.rand(2, 3, 33, 47), tiny_network(1).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images)
        labels = torch.zeros(2, 33, 47, dtype=torch.int64)
        losses = [nn.functional.cross_entropy(upsample(one, (33, 47)), labels) for one in logits.values()]
    assert all(loss.requires_grad for loss in losses)
    of_input, of_label = network.least_bytes_a_pixel()
    # Half of a label's bytes are gradients, which come with the backward pass.
    assert 2 * 33 * 47 * (of_input + of_label / 2) < sum(kept.values())


def test_what_does_not_fit_the_memory_is_refused_with_all_that_takes_it(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda: 2.0**30)
    checked(shards, [64, 48], [64, 48], batch_size=8)
    message = (
        r"^batch_size=1024 with source\.size 640×480 and target\.size 64×48 and loader\.workers=2 takes at least "
        r"[0-9.]+ GiB on this machine, and 1\.0 GiB are free; give less of them, or more to accumulate$"
    )
    with pytest.raises(UserError, match=message):
        checked(shards, [640, 480], [64, 48], batch_size=1024)
    with pytest.raises(UserError, match=r"loader\.workers=250 takes"):
        checked(shards, [64, 48], [64, 48], batch_size=256, loader={"workers": 250})
    checked(shards, [64, 48], [64, 48], batch_size=256, loader={"workers": 0})


def test_what_is_read_ahead_is_held_to_the_memory_as_the_bytes_that_it_has(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(
        source={"path": str(shards), "size": [64, 48]},
        target={"path": str(shards), "size": [32, 24]},
        method={"name": "minent"},
        batch_size=8,
        loader={"workers": 50},
    )
    data = open_training_data(config, METHODS["minent"])
    assert data.target is not None
    read = [8 * one[0]["pictures"].nbytes for one in (data.source, data.target)]
    monkeypatch.setattr(sizes, "free_memory", lambda: READ_AHEAD * 50 * sum(read) - 1.0)
    with pytest.raises(UserError, match=r"loader\.workers=50 takes"):
        refuse_impossible_sizes(config, METHODS["minent"], data, torch.device("cuda"), ALONE)
    monkeypatch.setattr(sizes, "free_memory", lambda: READ_AHEAD * 50 * sum(read) + 1.0)
    refuse_impossible_sizes(config, METHODS["minent"], data, torch.device("cuda"), ALONE)
