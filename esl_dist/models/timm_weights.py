"""Weights for a backbone of timm: a file's names and shapes, whoever wrote it → the network's.

A file is this project's own; timm's; one whose names timm knows to convert, such as the original files of DINOv2,
DINOv3, Swin and ConvNeXt; or torchvision's of MobileNetV2 (whole, or of its `features` alone), whose blocks are those
of timm's `mobilenetv2_100` under other names. Whatever finds no place is told.
"""

import re
import sys
from collections.abc import Container, Mapping
from contextlib import redirect_stdout

from torch import Tensor, nn

BACKBONE = "backbone."
CONVERTER = "checkpoint_filter_fn"
"""In timm's modules, the function that turns original files to its own names, and resamples position embeddings."""
REPEATS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks a stage of MobileNetV2 (arXiv 1801.04381, table 2)."""
LAST = 1 + sum(REPEATS)
"""Number of torchvision's convolution behind all blocks."""
FIRST_BLOCK = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
OTHER_BLOCKS = {
    **{"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2"},
    **{"conv.2": "conv_pwl", "conv.3": "bn3"},
}


def timm_names(weights: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str], str]:
    """Return a state dict under the names of a network of timm, what was dropped from it, and what was done to it.

    Args:
        weights: names → tensors.
        network: has a `backbone` of timm.
    """
    own = network.state_dict()
    if any(name in own for name in weights):
        return dict(weights), [], ""
    places = mobilenet_v2_places()
    if any(_from_torchvision(name, places) != name for name in weights):
        return _placed({_from_torchvision(name, places): tensor for name, tensor in weights.items()}, own), [], ""
    converted = _converted_by_timm(weights, network.get_submodule("backbone"))
    if _fitting(converted, own) <= _fitting(weights, own):
        return _placed(weights, own), [], ""
    kept = {id(tensor) for tensor in converted.values()}
    dropped = [name for name, tensor in weights.items() if name not in converted and id(tensor) not in kept]
    return _placed(converted, own), dropped, _what_was_done(weights, converted)


def _placed(weights: Mapping[str, Tensor], own: Container[str]) -> dict[str, Tensor]:
    return {BACKBONE + name if BACKBONE + name in own else name: tensor for name, tensor in weights.items()}


def _converted_by_timm(weights: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return what timm makes of a file for this kind of backbone; the file itself, where it knows no other names."""
    convert = getattr(sys.modules[type(backbone).__module__], CONVERTER, None)
    if convert is None:
        return dict(weights)
    try:
        with redirect_stdout(None):  # it prints what it looks for and does not find
            converted: dict[str, Tensor] = convert(dict(weights), backbone)
    except Exception:  # of a file of another network, which is told by its names and shapes as they are
        return dict(weights)
    return converted


def _fitting(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int:
    """Return how many tensors fit the backbone by name and shape."""
    places = {name: own.get(BACKBONE + name) for name in weights}
    return sum(place is not None and place.shape == weights[name].shape for name, place in places.items())


def _what_was_done(weights: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> str:
    shapes = {name: (list(weights[name].shape), list(converted[name].shape)) for name in weights if name in converted}
    reshaped = [f"{name} {old} → {new}" for name, (old, new) in shapes.items() if old != new]
    renamed = len([name for name in converted if name not in weights])
    done = [f"{renamed} tensors renamed"] * (renamed > 0) + [f"reshaped: {', '.join(reshaped)}"] * bool(reshaped)
    return f"converted by timm: {'; '.join(done)}" if done else "converted by timm"


def mobilenet_v2_places() -> dict[str, str]:
    """Return the names of torchvision's `mobilenet_v2().features` → timm's, of modules."""
    modules = {"0.0": "conv_stem", "0.1": "bn1", f"{LAST}.0": "conv_head", f"{LAST}.1": "bn2"}
    places = [(stage, block) for stage, repeats in enumerate(REPEATS) for block in range(repeats)]
    for number, (stage, block) in enumerate(places, start=1):
        parts = FIRST_BLOCK if number == 1 else OTHER_BLOCKS
        modules |= {f"{number}.{theirs}": f"blocks.{stage}.{block}.{ours}" for theirs, ours in parts.items()}
    return modules


def _from_torchvision(name: str, places: Mapping[str, str]) -> str:
    match = re.fullmatch(r"(?:features\.)?(.*)\.(\w+)", name)
    return f"{places[match[1]]}.{match[2]}" if match is not None and match[1] in places else name
