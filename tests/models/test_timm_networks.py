"""Backbones of timm: exact batch norm, nothing drawn, pictures of any size, weights by name, refusals with words."""

import re
from functools import partial, reduce
from typing import Any

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import segmentation_optimizer
from esl_dist.data.loading import MEAN_COLOR
from esl_dist.errors import UserError
from esl_dist.models.batch_norm import batch_norms
from esl_dist.models.segmentation import checkpoint_blocks
from esl_dist.models.timm_networks import known_name
from esl_dist.models.weights import published_state
from tests.models.timm_backbones import CLASSES, FOUNDATION, PLAIN, PYRAMIDS, network_of, pictures


@pytest.mark.parametrize("name", [*PYRAMIDS, *PLAIN])
def test_a_pass_draws_nothing_and_every_parameter_learns(name: str) -> None:
    network = network_of(name).train()
    before = torch.get_rng_state()
    logits = network(pictures(33, 50), "source")
    assert torch.equal(torch.get_rng_state(), before)
    assert tuple(logits) == network.levels
    sum((one**2).sum() for one in logits.values()).backward()
    assert [name for name, one in network.named_parameters() if one.grad is None] == []
    groups = [one for group in network.parameter_groups().values() for one in group]
    assert {id(one) for one in groups} == {id(one) for one in network.parameters()}
    assert len(groups) == len(list(network.parameters()))


def test_dropout_and_stochastic_depth_are_off() -> None:
    with torch.device("meta"):
        network = network_of("swin_tiny_patch4_window7_224")
    dropped = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert dropped
    assert set(dropped) == {0.0}


def test_places_of_rotary_embeddings_are_not_moved_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm's Sapiens2 has them moved in training; here two blocks of a smaller network."""
    create = partial(timm.create_model, depth=2, rope_rescale_coords=2.0)
    monkeypatch.setattr(timm, "create_model", create)
    network = network_of("vit_small_patch16_dinov3").train()
    before = torch.get_rng_state()
    with torch.no_grad():
        network(pictures(), "source")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("stride", "size"), [(None, (2, 3)), (8, (4, 6)), (32, (1, 2))])
def test_the_stride_is_the_one_asked_for(stride: int | None, size: tuple[int, int]) -> None:
    network = network_of("test_efficientnet", output_stride=stride).eval()
    assert network(pictures())["main"].shape == (2, CLASSES, *size)


def test_a_plain_transformer_sees_whole_patches_and_scores_at_a_quarter() -> None:
    network = network_of("test_vit").eval()
    seen: list[torch.Size] = []
    network.backbone.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    assert network(pictures(60, 100))["main"].shape == (2, CLASSES, 16, 24)
    # ⌊1.1 · 60 / 16⌋ = 4 and ⌊1.1 · 100 / 16⌋ = 6 patches.
    assert seen == [(2, 3, 64, 96)]
    assert network(pictures(5, 5))["main"].shape == (2, CLASSES, 4, 4)


@pytest.mark.parametrize("name", FOUNDATION)
def test_foundation_models_are_built_by_name(name: str) -> None:
    with torch.device("meta"):
        network = network_of(name).eval()
        assert network(torch.empty(1, 3, 28, 48))["main"].shape[:2] == (1, CLASSES)
    assert network.patch == int(re.findall(r"patch(\d+)", name)[0])


class _NotThere(TorchDispatchMode):
    """Notes what is made on another device than where a network is."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(output) if isinstance(one, torch.Tensor)]
        self.made |= {func.name() for one in tensors if one.device.type != "meta"}
        return output


@pytest.mark.usefixtures("small_ones")
@pytest.mark.parametrize("name", FOUNDATION)
def test_nothing_of_a_pass_is_made_on_the_host_which_would_wait_for_the_device_to_take_it(name: str) -> None:
    with torch.device("meta"):
        network, images = network_of(name).train(), torch.empty(1, 3, 64, 96)
    with _NotThere() as elsewhere:
        network(images)
    assert elsewhere.made == set()


@pytest.mark.usefixtures("small_ones")
def test_dinov3s_places_are_timms() -> None:
    network, own = network_of(FOUNDATION[-1]).eval(), timm.create_model(FOUNDATION[-1], dynamic_img_size=True).rope
    for height, width in ((4, 6), (5, 5)):
        assert torch.equal(network.backbone.rope.get_embed(shape=(height, width)), own.get_embed(shape=(height, width)))


def test_pictures_are_converted_to_what_the_backbone_was_trained_on() -> None:
    network = network_of("mobilenetv2_100").eval()
    seen: list[torch.Tensor] = []
    network.backbone.conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    red_green_blue = torch.rand(2, 3, 16, 16)
    grey_levels = 255 * red_green_blue.flip(1) - torch.tensor(MEAN_COLOR)[:, None, None]
    network(grey_levels)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (red_green_blue - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    network(network.masked_color[None, :, None, None].expand(1, 3, 16, 16))
    assert float(seen[1].abs().max()) < 1e-5


def test_its_batch_norm_computes_what_timms_does_and_learns_scale_and_shift() -> None:
    network = network_of("test_efficientnet", auxiliary_head=False).double().train()
    torch.manual_seed(0)
    plain = timm.create_model("test_efficientnet", num_classes=0, output_stride=16).double().train()
    given = {name.removeprefix("backbone."): one for name, one in network.state_dict().items()}
    plain.load_state_dict({name: one for name, one in given.items() if not name.startswith("head.")}, strict=False)
    images = pictures().double()
    expected = plain.forward_intermediates(images * 0.01, indices=[-1], intermediates_only=True)[0]
    found = network.backbone.forward_intermediates(images * 0.01, indices=network.indices, intermediates_only=True)[0]
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in network.backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, msg=name)


def test_statistics_per_domain_are_kept_and_left_out_of_what_is_exported() -> None:
    network = network_of("test_efficientnet", batch_norm="per_domain").train()
    network(pictures(), "source")
    one = next(iter(batch_norms(network)))
    assert not torch.equal(one.source_mean, torch.zeros_like(one.source_mean))
    assert torch.equal(one.running_mean, torch.zeros_like(one.running_mean))
    assert not [name for name in published_state(network) if "source" in name]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilnetv2_100", {}, "has no model of this name; close to it: mobilenetv2_100"),
        ("hf-hub:someone/model", {}, "has no model of this name"),
        ("resnet50.of_nobody", {}, r"no model of this name; close to it: .*resnet50\."),
        ("test_vit", {"auxiliary_head": True}, r"no stage before its last; give network\.auxiliary_head=false"),
        ("test_vit", {"batch_norm": "per_domain"}, r"network\.batch_norm=per_domain is impossible: .* no batch norm"),
        ("test_convnext", {"normalise_over": "picture"}, r"network\.normalise_over=picture is impossible"),
        ("test_vit", {"output_stride": 8}, "its stride is its patch of 16"),
        ("test_vit_relpos", {}, "takes pictures of one size only"),
        ("test_mambaout", {"output_stride": 8}, r"cannot compute at network\.output_stride=8; its own is 32"),
        ("levit_128s", {}, "its BatchNorm1d is not exact over ranks"),
    ],
)
def test_what_a_backbone_cannot_be_is_refused_with_words(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message), torch.device("meta"):
        network_of(name, **options)


def test_a_tagged_name_is_known() -> None:
    assert known_name("timm/vit_small_patch14_dinov2.lvd142m") == "vit_small_patch14_dinov2.lvd142m"


def test_blocks_computed_again_give_the_same_gradients_and_batch_norm_is_refused() -> None:
    gradients = []
    for again in (False, True):
        network = network_of("test_vit").train()
        if again:
            checkpoint_blocks(network)
        network(pictures())["main"].square().sum().backward()
        gradients.append([one.grad for one in network.parameters()])
    assert all(map(torch.equal, *gradients))
    with pytest.raises(UserError, match=r"^checkpoint_activations=true: timm/test_resnet has batch norm"):
        checkpoint_blocks(network_of("test_resnet"))
    with torch.device("meta"), pytest.raises(UserError, match=r"^checkpoint_activations=true: timm cannot compute"):
        checkpoint_blocks(network_of("twins_svt_small"))


def test_a_single_value_is_refused_where_there_is_batch_norm() -> None:
    with pytest.raises(UserError, match=r"^here: batch norm over one value a channel .* give larger pictures"):
        network_of("test_resnet").refuse_size((16, 16), 1, "here", "there")
    for size, count in (((17, 16), 1), ((16, 16), 2)):
        network_of("test_resnet").refuse_size(size, count, "here", "there")
    network_of("test_resnet").eval().refuse_size((1, 1), 1, "here", "there")
    network_of("test_vit").refuse_size((1, 1), 1, "here", "there")
    # Without padding 75 pixels become one, where a 32nd would be 3.
    with torch.device("meta"):
        inception = network_of("inception_v3")
    for size, message in (((75, 75), "one value a channel"), ((74, 74), r"does not take .* of 74×74 \(")):
        with pytest.raises(UserError, match=rf"^here: .*{message}"):
            inception.refuse_size(size, 1, "here", "there")


def test_adamw_leaves_tokens_and_position_embeddings_norms_and_biases_alone() -> None:
    network = network_of("test_vit3")
    options = settings.Optimizer(
        **{"kind": "adamw", "learning_rate": 1.0, "schedule_steps": 1, "schedule_power": 1.0, "weight_decay": 0.1}
    )
    optimizer = segmentation_optimizer(network, options)
    names = {id(one): name for name, one in network.named_parameters()}
    groups = [{names[id(one)]: group["weight_decay"] for one in group["params"]} for group in optimizer.param_groups]
    decay = reduce(lambda one, other: one | other, groups)
    assert decay.keys() == set(names.values())
    alone = {name for name in decay if decay[name] == 0}
    small = {name for name, one in network.named_parameters() if one.ndim == 1}
    assert alone == small | {"backbone.pos_embed", "backbone.reg_token"}


@pytest.mark.parametrize("name", [*PYRAMIDS, *PLAIN])
def test_a_pass_keeps_more_than_the_least_memory(name: str) -> None:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network = network_of(name).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(pictures(64, 96))
    of_input, of_label = network.least_bytes_a_pixel()
    assert 0 < 2 * 64 * 96 * of_input < sum(kept.values())
    assert of_label == 8 * CLASSES * len(network.levels)


def test_a_shift_behind_a_linear_bottleneck_changes_nothing() -> None:
    """Its gradient is 0: the exactness over ranks can only be held to an absolute bound there."""
    network = network_of("test_efficientnet", auxiliary_head=False).double().train()
    scale, shift = (network.get_parameter(f"backbone.blocks.2.0.bn2.{name}") for name in ("weight", "bias"))
    before = network(pictures().double())["main"]
    of_scale, of_shift = torch.autograd.grad(before.square().sum(), (scale, shift))
    assert float(of_shift.abs().max()) < 1e-12 < 1e-6 < float(of_scale.abs().max())
    with torch.no_grad():
        shift += 1
    torch.testing.assert_close(network(pictures().double())["main"], before, rtol=1e-10, atol=1e-12)
