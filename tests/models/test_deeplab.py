"""The network is DeepLab-v2 as published: names, strides, dilations, sizes; each parameter is trained once."""

import functools

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esl_dist.models.batch_norm import DomainBatchNorm2d
from esl_dist.models.deeplab import ARCHITECTURES, CLASSIFIER_DILATIONS, Classifier, DeepLab
from esl_dist.models.segmentation import checkpoint_blocks
from esl_dist.models.weights import TORCHVISION_STD, initialise, load_weights

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@functools.cache
def without_storage(architecture: str, classes: int = 19, auxiliary: bool = True, per_domain: bool = False) -> DeepLab:
    """Return a network that has shapes and names, but no numbers."""
    with torch.device("meta"):
        return DeepLab(architecture, classes, auxiliary, per_domain)


def small(per_domain: bool = False, auxiliary: bool = True) -> DeepLab:
    torch.manual_seed(0)
    network = DeepLab("tiny", 4, auxiliary, per_domain)
    initialise(network)
    return network


def published_names(blocks: tuple[int, ...]) -> list[str]:
    """Return the names of the published ResNet-101 checkpoint, for any number of bottlenecks a stage."""
    names = ["conv1.weight", *(f"bn1.{part}" for part in NORM)]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for number in (1, 2, 3):
                names.append(f"{prefix}.conv{number}.weight")
                names += [f"{prefix}.bn{number}.{part}" for part in NORM]
            if block == 0:
                names.append(f"{prefix}.downsample.0.weight")
                names += [f"{prefix}.downsample.1.{part}" for part in NORM]
    for head in ("layer5", "layer6"):
        names += [f"{head}.conv2d_list.{number}.{part}" for number in range(4) for part in ("weight", "bias")]
    return names


@pytest.mark.parametrize(("architecture", "blocks"), [("resnet101", (3, 4, 23, 3)), ("resnet50", (3, 4, 6, 3))])
def test_names_are_the_published_ones(architecture: str, blocks: tuple[int, ...]) -> None:
    assert sorted(without_storage(architecture).state_dict()) == sorted(published_names(blocks))


def test_per_domain_statistics_are_the_only_further_names() -> None:
    added = without_storage("resnet101", per_domain=True).state_dict().keys() - set(published_names((3, 4, 23, 3)))
    assert added
    assert all(name.endswith((".source_mean", ".source_var")) for name in added)


@pytest.mark.parametrize("architecture", ["resnet50", "resnet101"])
def test_bottlenecks_are_as_wide_and_as_dilated_as_published(architecture: str) -> None:
    network = without_storage(architecture)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    for stage, width, stride, dilation in zip(stages, (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True):
        assert stage[0].downsample[0].stride == (stride, stride)
        assert all(block.downsample is None for block in list(stage)[1:])
        for number, block in enumerate(stage):
            here = stride if number == 0 else 1
            assert block.conv1.kernel_size == (1, 1)
            assert block.conv1.stride == (here, here), "the stride is on the first 1×1 convolution"
            assert block.conv2.stride == block.conv3.stride == (1, 1)
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
            assert (block.conv1.out_channels, block.conv3.out_channels) == (width, 4 * width)
    assert {conv.in_channels for conv in network.layer5.conv2d_list} == {1024}
    assert {conv.in_channels for conv in network.layer6.conv2d_list} == {2048}


def test_basic_blocks_have_a_shortcut_convolution_where_the_width_changes() -> None:
    network = without_storage("resnet18")
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [stage[0].downsample is not None for stage in stages] == [False, True, True, True]
    assert [stage[0].conv1.stride[0] for stage in stages] == [1, 2, 1, 1]
    assert [block.conv2.dilation[0] for stage in stages for block in stage] == [1, 1, 1, 1, 2, 2, 4, 4]


def test_a_classifier_is_the_sum_of_four_dilated_convolutions() -> None:
    assert CLASSIFIER_DILATIONS == (6, 12, 18, 24)
    classifier = Classifier(5, 3).double()
    features = torch.randn(2, 5, 9, 13, dtype=torch.float64)
    expected = sum(
        nn.functional.conv2d(features, conv.weight, conv.bias, padding=dilation, dilation=dilation)
        for conv, dilation in zip(classifier.conv2d_list, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(classifier(features), expected)


def test_both_heads_of_resnet101_score_an_odd_picture_at_an_eighth() -> None:
    logits = without_storage("resnet101").eval()(torch.empty(1, 3, 65, 97, device="meta"))
    assert list(logits) == ["main", "auxiliary"]
    assert {tuple(scores.shape) for scores in logits.values()} == {(1, 19, 9, 13)}


@functools.cache
def in_evaluation(architecture: str) -> DeepLab:
    return without_storage(architecture).eval()


def size_at_an_eighth(architecture: str, height: int, width: int) -> tuple[int, ...]:
    return tuple(in_evaluation(architecture)(torch.empty(1, 3, height, width, device="meta"))["main"].shape[2:])


@given(height=st.integers(1, 300), width=st.integers(1, 300))
@settings(deadline=None, max_examples=60)
def test_the_output_stride_is_8(height: int, width: int) -> None:
    assert size_at_an_eighth("tiny", height, width) == ((height + 1) // 8 + 1, (width + 1) // 8 + 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("height", "width"), [(64, 63), (65, 97), (62, 70)])
def test_the_output_stride_is_8_for_every_architecture(architecture: str, height: int, width: int) -> None:
    assert size_at_an_eighth(architecture, height, width) == ((height + 1) // 8 + 1, (width + 1) // 8 + 1)


def test_cityscapes_pictures_give_the_published_size() -> None:
    assert size_at_an_eighth("tiny", 512, 1024) == (65, 129)


def test_a_single_level_has_no_auxiliary_head() -> None:
    network = small(auxiliary=False)
    assert network.levels == tuple(network(torch.zeros(2, 3, 17, 17))) == ("main",)
    assert not any(name.startswith("layer5") for name in network.state_dict())
    assert small().levels == ("main", "auxiliary")


def test_the_first_stages_of_resnet18_are_torchvisions() -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(weights=None).eval().double()
    ours = DeepLab("resnet18", 3, False, False).eval().double()
    load_weights(ours, theirs.state_dict(), "torchvision")
    normalised = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    # Theirs reads normalised RGB, ours BGR in grey levels about the mean.
    inputs = {"theirs": normalised, "ours": (normalised * 255 * torch.tensor(TORCHVISION_STD)[:, None, None]).flip(1)}
    features = {}
    for name, network in (("ours", ours), ("theirs", theirs)):
        network.layer2.register_forward_hook(lambda module, args, output, name=name: features.update({name: output}))
        with torch.no_grad():
            # At this size the max-pool gives the same whether it rounds up or down.
            network(inputs[name])
    torch.testing.assert_close(features["ours"], features["theirs"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("per_domain", [False, True])
def test_groups_hold_every_trainable_parameter_once(architecture: str, auxiliary: bool, per_domain: bool) -> None:
    network = without_storage(architecture, auxiliary=auxiliary, per_domain=per_domain)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = {
        part: [names[id(parameter)] for parameter in parameters]
        for part, parameters in network.parameter_groups().items()
    }
    grouped = sorted(name for part in groups.values() for name in part)
    convolutions = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    weights = [f"{name}.weight" for name, _ in convolutions]
    biases = [f"{name}.bias" for name, module in convolutions if module.bias is not None]
    assert grouped == sorted(weights + biases), "convolutions alone: scale and shift of batch norm are frozen"
    assert groups["stem"] == ["conv1.weight"]
    assert all(".downsample.0." in name for name in groups["shortcuts"])
    assert all(name.startswith(("layer5.", "layer6.")) for name in groups["heads"])
    assert all(name[:5] == "layer" and name[5] in "1234" and "downsample" not in name for name in groups["blocks"])
    assert len(groups["heads"]) == 8 * len(network.levels)


@pytest.mark.parametrize(("domain", "fed"), [("source", "source_"), ("target", "running_")])
def test_a_pass_feeds_the_statistics_of_its_domain_in_every_layer(domain: str, fed: str) -> None:
    network = small(per_domain=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(2, 3, 33, 33), domain)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    norms = [name for name, module in network.named_modules() if isinstance(module, DomainBatchNorm2d)]
    expected = {f"{name}.{fed}{part}" for name in norms for part in ("mean", "var")}
    assert {name for name in changed if not name.endswith("num_batches_tracked")} == expected


def test_evaluation_is_of_the_target_unless_told_otherwise() -> None:
    network = small(per_domain=True).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 33, 33), "target")
            network(torch.randn(2, 3, 33, 33) * 4 + 2, "source")
        network.eval()
        images = torch.randn(1, 3, 33, 33)
        by_domain = {domain: network(images, domain)["main"] for domain in ("source", "target")}
        assert torch.equal(network(images)["main"], by_domain["target"])
    assert not torch.allclose(by_domain["source"], by_domain["target"])


def test_with_shared_statistics_evaluation_does_not_ask_for_the_domain() -> None:
    network = small().eval()
    images = torch.randn(1, 3, 33, 33)
    assert torch.equal(network(images, "source")["main"], network(images, "target")["main"])


def test_both_levels_send_gradients_to_the_blocks() -> None:
    network = small().train()
    logits = network(torch.randn(2, 3, 33, 33))
    logits["auxiliary"].sum().backward()
    assert network.layer4[0].conv1.weight.grad is None
    assert network.layer3[0].conv1.weight.grad is not None


@pytest.mark.parametrize("per_picture", [False, True])
def test_blocks_that_are_computed_again_learn_the_same_bits_and_keep_less(per_picture: bool) -> None:
    results = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        network = DeepLab("tiny", 4, True, True, per_picture)
        initialise(network)
        network.train()
        if is_checkpointed:
            checkpoint_blocks(network)
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
            return tensor

        for domain in ("source", "target"):
            images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                logits = network(images, domain)
            sum(scores.pow(3).sum() for scores in logits.values()).backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append(([*gradients, *network.buffers()], sum(storage.nbytes() for storage in kept.values())))
    (plain, all_bytes), (again, fewer_bytes) = results
    assert len(plain) == len(again) > 50
    assert all(map(torch.equal, again, plain))
    assert fewer_bytes < all_bytes / 2
