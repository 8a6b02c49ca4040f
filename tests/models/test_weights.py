"""Weights come under three kinds of names; what does not fit is named."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from esl_dist.errors import UserError
from esl_dist.models.deeplab import Classifier, DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import (
    TORCHVISION_STD,
    describe_weights,
    initialise,
    load_weights,
    published_state,
)


def network(classes: int = 4, auxiliary: bool = True, per_domain: bool = False, seed: int = 0) -> DeepLab:
    torch.manual_seed(seed)
    built = DeepLab("tiny", classes, auxiliary, per_domain)
    initialise(built)
    return built


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_another_number_of_classes_names_the_tensor_and_both_shapes() -> None:
    target = network(classes=7, auxiliary=False)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(target, network(classes=4, auxiliary=False, seed=1).state_dict(), "some.pth")
    for part in ("some.pth", "layer6.conv2d_list.0.weight", "[4, 192, 3, 3]", "[7, 192, 3, 3]"):
        assert part in str(caught.value)
    assert same(target.state_dict(), before), "a refused file leaves the network as it was"


def test_the_imagenet_start_fills_all_but_the_heads() -> None:
    start, loaded = network(seed=1), network(classes=7, seed=2)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    names = {f"Scale.{name}": tensor for name, tensor in start.state_dict().items() if "layer6" not in name}
    report = load_weights(loaded, names, "imagenet.pth")
    heads = sorted(name for name in before if name.startswith(("layer5", "layer6")))
    assert report.missing == heads
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name] if name in heads else start.state_dict()[name]), name


def test_what_the_imagenet_start_has_for_other_classes_is_named_as_left_over() -> None:
    names = {
        f"Scale.{name}": tensor for name, tensor in network(classes=21).state_dict().items() if "layer6" not in name
    }
    report = load_weights(network(classes=4, seed=1), names, "imagenet.pth")
    assert report.left_over == sorted(name for name in names if name.startswith("Scale.layer5"))
    assert report.left_over


def test_torchvisions_weights_are_known_by_their_last_layer_behind_a_prefix_too() -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    plain, wrapped = DeepLab("resnet18", 3, False, False), DeepLab("resnet18", 3, False, False)
    load_weights(plain, weights, "torchvision")
    assert load_weights(wrapped, {f"module.{name}": value for name, value in weights.items()}, "wrapped").converted
    assert torch.equal(plain.conv1.weight, wrapped.conv1.weight)
    scale = 255 * torch.tensor(TORCHVISION_STD)[:, None, None]
    torch.testing.assert_close(plain.conv1.weight, (weights["conv1.weight"] / scale).flip(1))


def test_weights_saved_from_data_parallel_fill_the_heads_too() -> None:
    saved, loaded = network(seed=1), network(seed=2)
    report = load_weights(loaded, {f"module.{name}": value for name, value in saved.state_dict().items()}, "file")
    assert (report.missing, report.left_over) == ([], [])
    assert same(loaded.state_dict(), saved.state_dict())


@pytest.mark.parametrize("architecture", ["tiny", "resnet18"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_weights_say_which_network_they_are_of(architecture: str, auxiliary: bool) -> None:
    state = DeepLab(architecture, 6, auxiliary, per_domain=False).state_dict()
    assert describe_weights(state, "file") == (architecture, 6, auxiliary)
    without_counters = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert describe_weights(without_counters, "file") == (architecture, 6, auxiliary)


def test_weights_of_no_trained_network_of_the_family_are_refused() -> None:
    start = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(UserError, match=r"start\.pth: no trained segmentation network, .* no classifier layer6"):
        describe_weights(start, "start.pth")
    state = network().state_dict()
    with pytest.raises(UserError, match=r"other\.pth: its tensors are those of none of the networks resnet152, "):
        describe_weights({**state, "layer1.0.conv1.weight": torch.zeros(1)}, "other.pth")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_exported_weights_are_a_plain_state_dict_of_the_published_names(name: str, tmp_path: Path) -> None:
    exported = network(per_domain=True)
    write_weights(tmp_path / name, published_state(exported))
    published = torch.load(tmp_path / name, weights_only=True) if name.endswith("pth") else load_file(tmp_path / name)
    plain = network(seed=2)
    plain.load_state_dict(published, strict=True)
    assert same(plain.state_dict(), published_state(exported))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvisions_weights_fill_all_but_the_heads(architecture: str) -> None:
    torch.manual_seed(0)
    weights = getattr(torchvision.models, architecture)(weights=None).state_dict()
    loaded = DeepLab(architecture, 5, auxiliary_head=True, per_domain=False)
    report = load_weights(loaded, weights, "torchvision")
    assert report.left_over == ["fc.bias", "fc.weight"]
    assert report.converted
    assert report.missing == sorted(
        f"layer{head}.conv2d_list.{number}.{part}"
        for head in (5, 6)
        for number in range(4)
        for part in ("bias", "weight")
    )
    state = loaded.state_dict()
    filled = weights.keys() - {"fc.bias", "fc.weight", "conv1.weight"}
    assert all(torch.equal(state[name], weights[name]) for name in filled)


def test_of_a_backbone_that_does_not_say_what_it_reads_it_is_told_how_it_is_taken() -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    loaded = DeepLab("resnet18", 5, auxiliary_head=True, per_domain=False)
    assert "needs its last layer, fc.weight" in load_weights(loaded, bare, "bare").converted
    assert torch.equal(loaded.conv1.weight, bare["conv1.weight"])
    start = {f"Scale.{name}": tensor for name, tensor in {**bare, "layer5.weight": torch.zeros(1)}.items()}
    assert load_weights(loaded, start, "the published start").converted == ""
    assert load_weights(loaded, loaded.state_dict(), "its own").converted == ""


@pytest.mark.parametrize("weights", [{"a.b": torch.zeros(1)}, {"encoder": torch.zeros(1)}, {}])
def test_a_file_without_a_fitting_name_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"some\.pth: none of its"):
        load_weights(network(), weights, "some.pth")


def test_published_weights_fill_a_network_with_statistics_per_domain() -> None:
    loaded = network(per_domain=True, seed=2)
    report = load_weights(loaded, network(seed=1).state_dict(), "published.pth")
    assert (report.missing, report.left_over) == ([], [])
    state = loaded.state_dict()
    for name in state:
        for own, shared in (("source_mean", "running_mean"), ("source_var", "running_var")):
            if name.endswith(own):
                assert torch.equal(state[name], state[name.removesuffix(own) + shared]), name


def test_the_published_state_holds_the_statistics_of_the_target_alone() -> None:
    exported = network(per_domain=True, seed=1).train()
    exported(torch.randn(2, 3, 33, 33), "source")
    exported(torch.randn(2, 3, 33, 33) + 3, "target")
    state = published_state(exported)
    plain = network(seed=2)
    assert state.keys() == plain.state_dict().keys()
    load_weights(plain, state, "exported")
    images = torch.randn(1, 3, 33, 33)
    assert torch.equal(plain.eval()(images)["main"], exported.eval()(images, "target")["main"])


def test_random_weights_are_those_of_the_seed() -> None:
    assert same(network(seed=3).state_dict(), network(seed=3).state_dict())
    assert not torch.equal(network(seed=3).conv1.weight, network(seed=4).conv1.weight)


@pytest.mark.parametrize("architecture", ["tiny", "resnet18"])
def test_random_weights_keep_signals_at_their_size(architecture: str) -> None:
    torch.manual_seed(0)
    built = DeepLab(architecture, 6, auxiliary_head=True, per_domain=False).train()
    initialise(built)
    sizes: list[float] = []
    for stage in (built.layer1, built.layer2, built.layer3, built.layer4):
        stage.register_forward_hook(lambda module, args, output: sizes.append(float(output.std())))
    with torch.no_grad():
        logits = built(torch.randn(2, 3, 65, 65) * 60)
    assert len(sizes) == 4
    assert all(0.3 < size < 10 for size in sizes), sizes
    for scores in logits.values():
        assert 0.05 < float(scores.std()) < 10


def test_classifiers_start_near_zero_and_without_preference() -> None:
    classifiers = [module for module in network(classes=19).modules() if isinstance(module, Classifier)]
    assert len(classifiers) == 2
    for classifier in classifiers:
        for convolution in classifier.conv2d_list:
            assert isinstance(convolution, nn.Conv2d)
            assert 0.009 < float(convolution.weight.detach().std()) < 0.011
            assert float(convolution.bias.detach().abs().max()) == 0


def test_all_but_the_classifiers_come_from_a_network_of_other_classes() -> None:
    other, loaded = network(classes=7, seed=1), network(classes=4, seed=2)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with pytest.raises(UserError, match=r"take all but its classifiers: network\.start_without=heads"):
        load_weights(loaded, other.state_dict(), "other.pth")
    report = load_weights(loaded, other.state_dict(), "other.pth", without_heads=True)
    heads = sorted(name for name in before if name.startswith(("layer5.", "layer6.")))
    assert (report.missing, report.left_out, report.left_over) == (heads, heads, [])
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name] if name in heads else other.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["module", "model", "net", "network", "_orig_mod", "model._orig_mod.module"])
def test_the_name_that_a_program_puts_before_a_whole_network_s_goes(prefix: str) -> None:
    saved, loaded = network(seed=1), network(seed=2)
    wrapped = {f"{prefix}.{name}": value for name, value in saved.state_dict().items()}
    assert describe_weights(wrapped, "file") == ("tiny", 4, True)
    report = load_weights(loaded, wrapped, "file")
    assert (report.missing, report.left_over) == ([], [])
    assert same(loaded.state_dict(), saved.state_dict())
