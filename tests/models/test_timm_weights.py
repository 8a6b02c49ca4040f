"""Weights come to a backbone of timm by name: from its hub, original files, torchvision, other runs."""

from functools import reduce
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from esl_dist.errors import UserError
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.timm_networks import pretrained_weights
from esl_dist.models.timm_weights import mobilenet_v2_places
from esl_dist.models.weight_files import read_weights, write_weights
from esl_dist.models.weights import load_weights
from esl_dist.runs.fitting import refuse_other_tensors
from tests.models.timm_backbones import CLASSES, FOUNDATION, network_of, pictures


def state_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = timm.create_model(name, num_classes=0).state_dict()
    return {key: torch.randn_like(one) for key, one in state.items()}


@pytest.mark.usefixtures("small_ones")
@pytest.mark.parametrize("name", FOUNDATION)
def test_foundation_models_take_the_state_of_timms(name: str) -> None:
    network, own = network_of(name), state_of(name)
    report = load_weights(network, own, "a file")
    assert all(name.startswith("head.") for name in report.missing)
    assert (report.left_over, report.converted) == ([], "")
    assert all(torch.equal(network.state_dict()[f"backbone.{name}"], tensor) for name, tensor in own.items())


def as_written_by_dinov2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state under the names of facebookresearch/dinov2, whose class token has a position of its own."""
    place = torch.randn(1, 1, state["pos_embed"].shape[2])
    theirs = {name: one for name, one in state.items() if name != "reg_token"}
    theirs |= {"cls_token": state["cls_token"] - place, "pos_embed": torch.cat([place, state["pos_embed"]], dim=1)}
    return {**theirs, "register_tokens": state["reg_token"], "mask_token": torch.zeros(1, place.shape[2])}


@pytest.mark.usefixtures("small_ones")
def test_dinov2s_own_file_is_converted_with_a_line() -> None:
    name = "vit_small_patch14_reg4_dinov2"
    network, own = network_of(name), state_of(name)
    report = load_weights(network, as_written_by_dinov2(own), "a file")
    assert all(name.startswith("head.") for name in report.missing)
    assert report.left_over == ["mask_token"]
    places = "pos_embed [1, 1370, 64] → [1, 1369, 64]"
    assert report.converted == f"converted by timm: 1 tensors renamed; reshaped: {places}"
    for key, tensor in own.items():
        torch.testing.assert_close(network.state_dict()[f"backbone.{key}"], tensor, msg=key)


@pytest.mark.usefixtures("small_ones")
def test_dinov3s_own_file_is_converted_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "vit_small_patch16_dinov3"
    network, own = network_of(name), state_of(name)
    swaps = (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens"))
    theirs = {reduce(lambda key, swap: key.replace(*swap), swaps, key): one for key, one in own.items()}
    unused = {"mask_token": torch.zeros(1, 64), "blocks.0.attn.qkv.bias": torch.zeros(192)}
    report = load_weights(network, {**theirs, **unused}, "a file")
    assert all(name.startswith("head.") for name in report.missing)
    assert report.left_over == sorted(unused)
    assert report.converted == "converted by timm: 5 tensors renamed"
    assert all(torch.equal(network.state_dict()[f"backbone.{name}"], tensor) for name, tensor in own.items())
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("small_ones")
def test_position_embeddings_of_another_size_are_resampled_with_a_line() -> None:
    network, own = network_of("vit_small_patch14_dinov2"), state_of("vit_small_patch14_dinov2")
    # Of a class token and 16×16 places; where they are all alike, they stay so.
    report = load_weights(network, {**own, "pos_embed": torch.full((1, 1 + 16 * 16, 64), 0.25)}, "a file")
    assert report.converted == "converted by timm: reshaped: pos_embed [1, 257, 64] → [1, 1370, 64]"
    torch.testing.assert_close(network.state_dict()["backbone.pos_embed"], torch.full((1, 1 + 37 * 37, 64), 0.25))


def test_weights_of_timms_hub_fill_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    hubs = timm.create_model("test_resnet").state_dict()
    # There is no hub here.
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(hubs))
    network = network_of("test_resnet", output_stride=8)
    report = load_weights(network, pretrained_weights(network), "the hub")
    assert all(name.startswith(network.heads) for name in report.missing)
    assert report.left_over == []
    state = network.state_dict()
    assert all(torch.equal(state[f"backbone.{name}"], one) for name, one in hubs.items() if not name.startswith("fc."))


def test_a_file_of_another_network_is_refused() -> None:
    foreign = timm.create_model("test_resnet").state_dict()
    for name in ("test_vit", "test_efficientnet", "swin_tiny_patch4_window7_224"):
        with torch.device("meta"):
            network = network_of(name)
        with pytest.raises(UserError, match=r"^a file: "):
            load_weights(network, foreign, "a file")


def test_a_published_deeplab_is_refused_whatever_of_its_names_are_timms() -> None:
    with torch.device("meta"):
        published = DeepLab("resnet18", CLASSES, False, per_domain=False).state_dict()
        network = network_of("resnet18", auxiliary_head=False)
    with pytest.raises(UserError, match=r"^a file: holds a DeepLab on a residual network, .* choose network\.archit"):
        load_weights(network, published, "a file")


def torchvision_network() -> nn.Module:
    torch.manual_seed(2)
    network = torchvision.models.mobilenet_v2()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("is_whole", [True, False])
def test_torchvisions_mobilenet_has_the_same_features_in_timms(is_whole: bool) -> None:
    other = torchvision_network()
    state = other.state_dict() if is_whole else other.features.state_dict()
    network = network_of("mobilenetv2_100", output_stride=32, auxiliary_head=False).eval()
    report = load_weights(network, state, "a file")
    assert all(name.startswith("head.") for name in report.missing)
    # Behind the last block: a convolution, its batch norm, and the classifier of images.
    assert len(report.left_over) == 6 + 2 * is_whole
    for theirs, ours in mobilenet_v2_places().items():
        if not theirs.startswith("18."):
            weight = network.state_dict()[f"backbone.{ours}.weight"]
            assert torch.equal(weight, other.features.state_dict()[f"{theirs}.weight"]), theirs
    images = pictures(64, 96)
    converted = images.flip(1) * network.input_scale + network.input_shift
    with torch.inference_mode():
        found = network.backbone.forward_intermediates(converted, indices=network.indices, intermediates_only=True)
        expected = other.features[:18](converted)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_all_but_the_heads_come_from_a_network_of_other_classes(name: str) -> None:
    start, fresh = network_of(name, seed=1, classes=5).state_dict(), network_of(name)
    with pytest.raises(UserError, match=r"^a file: (auxiliary_)?head\..*network\.start_without=heads"):
        load_weights(network_of(name), start, "a file")
    network = network_of(name)
    report = load_weights(network, start, "a file", without_heads=True)
    assert report.left_out
    assert report.left_over == []
    for key, tensor in network.state_dict().items():
        is_head = key.startswith(network.heads)
        assert torch.equal(tensor, fresh.state_dict()[key] if is_head else start[key]), key


def test_a_backbone_with_single_and_whole_numbers_of_its_own_takes_them_back(tmp_path: Path) -> None:
    """As timm's NFNets (a gain a block) and EfficientFormers (indices of a table) have."""
    network = network_of("test_resnet")
    network.backbone.gain = nn.Parameter(torch.tensor(1.0))
    network.backbone.register_buffer("index", torch.zeros(4, dtype=torch.int64))
    kept = {"backbone.gain": torch.tensor(0.75), "backbone.index": torch.arange(4)}
    write_weights(tmp_path / "w.pth", {**network.state_dict(), **kept})
    report = load_weights(network, read_weights(tmp_path / "w.pth").tensors, "a file")
    assert (report.missing, report.left_over) == ([], [])
    state = network.state_dict()
    assert all(torch.equal(state[name], one) for name, one in kept.items())
    refuse_other_tensors(state, state, tmp_path / "w.pth")
