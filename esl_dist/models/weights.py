"""Initial weights: random ones, or those of a state dict with the published names or torchvision's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esl_dist.errors import UserError
from esl_dist.models.deeplab import ARCHITECTURES, Classifier, DeepLab
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.models.sound_tensors import is_beside_weights, refuse_tensors
from esl_dist.models.timm_weights import timm_names

CLASSIFIER_STD = 0.01
"""Standard deviation of a classifier's random weights, as published."""

FIRST_CONVOLUTION = "conv1.weight"
SOURCE_STATISTICS = (".source_mean", ".source_var")

PLAIN_PREFIXES = ("module", "model", "net", "network", "_orig_mod")
"""Leading parts of names that programs add to a whole network's: DataParallel, Lightning, torch.compile."""

TORCHVISION_CLASSIFIER = "fc.weight"
TORCHVISION_STD = (0.229, 0.224, 0.225)
"""By which torchvision's networks expect red, green and blue to be divided."""
TURNED = "torchvision's first convolution was turned to the published input (BGR, grey levels)"
TAKEN_AS_IT_IS = (
    "its first convolution is taken to read the published input (BGR, grey levels); if it reads torchvision's, the "
    f"file needs its last layer, {TORCHVISION_CLASSIFIER}, by which it would be known"
)
"""Of a file that holds a backbone alone, under the names that torchvision and the published programs share."""


def initialise(network: SegmentationNetwork) -> None:
    """Fill a network with random weights from torch's generator.

    DeepLab's convolutions before a ReLU get He et al.'s normal weights (arXiv 1502.01852), its classifiers, on whatever
    backbone, the published ones. Other parts come with theirs.
    """
    if isinstance(network, DeepLab):
        for convolution in _convolutions(network):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        for convolution in _convolutions(module) if isinstance(module, Classifier) else ():
            assert convolution.bias is not None
            nn.init.normal_(convolution.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(convolution.bias)


def _convolutions(part: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in part.modules() if isinstance(module, nn.Conv2d))


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors.

    Attributes:
        missing: names of the network's tensors that the file did not fill.
        left_over: names of the file's that found no place.
        left_out: names of the file's classifiers that were not wanted.
        converted: what was done to tensors on the way; empty: nothing.
    """

    missing: list[str]
    left_over: list[str]
    left_out: list[str]
    converted: str


def load_weights(
    network: SegmentationNetwork, weights: Mapping[str, Tensor], origin: str, without_heads: bool = False
) -> LoadReport:
    """Fill a network from a state dict with the published names, those of the ImageNet start, or torchvision's.

    A backbone of timm takes the names of `timm_weights`.

    The ImageNet start of DeepLab-v2 has one leading name part more and classifiers of other classes, torchvision's
    files a last linear layer: such classifiers stay as they are and are reported. By that layer torchvision's files are
    known, and their first convolution is turned to the input of the published networks.

    Args:
        network: keeps what the state dict does not hold.
        weights: names → tensors.
        origin: begins each message.
        without_heads: whether the classifiers stay as they are, whatever the state dict holds.

    Raises:
        UserError: a tensor of another shape (such as another number of classes) or that no network can compute with
            (`sound_tensors.refuse_tensors`), or no tensor that fits by name.
    """
    own = network.state_dict()
    is_published = isinstance(network, DeepLab)
    if is_published:
        beside = [name for name, tensor in weights.items() if is_beside_weights(name, tensor)]
        weights, dropped = published_names(weights)
        converted = TURNED if TORCHVISION_CLASSIFIER in weights else ""
        if FIRST_CONVOLUTION in weights and not dropped and not any(map(_is_of_last_layer, weights)):
            converted = TAKEN_AS_IT_IS
        dropped += beside
    else:
        weights = _unwrapped(weights)
        if any(name.startswith(DeepLab.heads) for name in weights):
            raise UserError(
                f"{origin}: holds a DeepLab on a residual network, whose input and strides are others than timm's; "
                f"choose network.architecture, one of {', '.join(ARCHITECTURES)}"
            )
        weights, dropped, converted = timm_names(weights, network)
    # A file may have one set of statistics where the network keeps one a domain.
    shared = {name: name.replace(".source_", ".running_") for name in own if name.endswith(SOURCE_STATISTICS)}
    weights = {name: weights[other] for name, other in shared.items() if other in weights} | weights
    left_out = [name for name in weights if without_heads and name.startswith(network.heads)]
    fitting = {name: tensor for name, tensor in weights.items() if name in own and name not in left_out}
    if not fitting:
        raise UserError(f"{origin}: none of its {len(weights)} names is one of the network's; is it another network's?")
    for name, tensor in fitting.items():
        if tensor.shape != own[name].shape:
            remedy = (
                "choose the number of classes of the file, or take all but its classifiers: network.start_without=heads"
                if name.startswith(network.heads)
                else "choose the architecture of the file"
            )
            raise UserError(
                f"{origin}: {name} has shape {list(tensor.shape)}, the network's {list(own[name].shape)}; {remedy}"
            )
    refuse_tensors(fitting, origin, own)
    network.load_state_dict(fitting, strict=False)
    return LoadReport(
        missing=sorted(own.keys() - fitting.keys()),
        left_over=sorted([*dropped, *(weights.keys() - fitting.keys() - set(left_out))]),
        left_out=sorted(left_out),
        converted=converted,
    )


def published_names(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict under the published names, and the names that were dropped from it.

    A leading part that all names share goes, and after one of `PLAIN_PREFIXES` the next. If it is none of them, it is
    that of the ImageNet start, whose classifier (`layer5`) is for other classes. What is no weight is left out.
    """
    weights = _unwrapped({name: one for name, one in weights.items() if not is_beside_weights(name, one)})
    prefix = _shared_prefix(weights)
    published = {name: name if prefix is None else name.removeprefix(f"{prefix}.") for name in weights}
    dropped = [name for name in weights if prefix is not None and published[name].startswith(DeepLab.heads)]
    return _for_published_input({published[name]: weights[name] for name in weights if name not in dropped}), dropped


def _is_of_last_layer(name: str) -> bool:
    return name == TORCHVISION_CLASSIFIER or name.startswith(DeepLab.heads)


def _unwrapped(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a state dict without what programs add to the names of a whole network."""
    while (prefix := _shared_prefix(weights)) in PLAIN_PREFIXES:
        weights = {name.removeprefix(f"{prefix}."): tensor for name, tensor in weights.items()}
    return weights


def _shared_prefix(weights: Mapping[str, Tensor]) -> str | None:
    """Return the leading part that all names share; None: there is no such, or the names are those of a network."""
    prefixes = {name.split(".", 1)[0] for name in weights if "." in name}
    return prefixes.pop() if len(prefixes) == 1 and FIRST_CONVOLUTION not in weights else None


def _for_published_input(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn torchvision's first convolution, which reads (RGB / 255 − mean) / std, to BGR − mean in grey levels."""
    if TORCHVISION_CLASSIFIER not in weights or FIRST_CONVOLUTION not in weights:
        return dict(weights)
    scale = 255 * torch.tensor(TORCHVISION_STD)
    first = weights[FIRST_CONVOLUTION] / scale[:, None, None].to(weights[FIRST_CONVOLUTION].dtype)
    return {**weights, FIRST_CONVOLUTION: first.flip(1)}


def describe_weights(weights: Mapping[str, Tensor], origin: str) -> tuple[str, int, bool]:
    """Return architecture, number of classes, and whether there is an auxiliary head, of a trained network's weights.

    Raises:
        UserError: they are not those of a network of this family with its classifiers.
    """
    published, _ = published_names(weights)
    classifier = published.get("layer6.conv2d_list.0.weight")
    if classifier is None:
        raise UserError(
            f"{origin}: no trained segmentation network, for it has no classifier layer6; one on a backbone of timm is "
            "known by its run, its checkpoint or the weights.safetensors that its training wrote"
        )
    auxiliary_head = any(name.startswith("layer5.") for name in published)
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            network = DeepLab(architecture, len(classifier), auxiliary_head, per_domain=False)
        if _shapes(published) == _shapes(network.state_dict()):
            return architecture, len(classifier), auxiliary_head
    raise UserError(f"{origin}: its tensors are those of none of the networks {', '.join(ARCHITECTURES)}")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


def published_state(network: SegmentationNetwork) -> dict[str, Tensor]:
    """Return the network's state, DeepLab's under the published names; of statistics per domain, the target's."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(SOURCE_STATISTICS)}
