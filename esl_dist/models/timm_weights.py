"""Names of weights for a backbone of timm: a file's, whoever wrote it → the network's.

A file is this project's own, timm's, or torchvision's of MobileNetV2 (whole, or of its `features` alone), whose blocks
are those of timm's `mobilenetv2_100` under other names. Whatever finds no place keeps its name, and is told.
"""

import re
from collections.abc import Container, Mapping

from torch import Tensor

BACKBONE = "backbone."
REPEATS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks a stage of MobileNetV2 (arXiv 1801.04381, table 2)."""
LAST = 1 + sum(REPEATS)
"""Number of torchvision's convolution behind all blocks."""
FIRST_BLOCK = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
OTHER_BLOCKS = {
    **{"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2"},
    **{"conv.2": "conv_pwl", "conv.3": "bn3"},
}


def timm_names(weights: Mapping[str, Tensor], own: Container[str]) -> dict[str, Tensor]:
    """Return a state dict under the names of a network of timm.

    Args:
        weights: names → tensors.
        own: the network's names.
    """
    if any(name in own for name in weights):
        return dict(weights)
    places = mobilenet_v2_places()
    if any(_from_torchvision(name, places) != name for name in weights):
        return {_from_torchvision(name, places): tensor for name, tensor in weights.items()}
    return {BACKBONE + name: tensor for name, tensor in weights.items()}


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
    return f"{BACKBONE}{places[match[1]]}.{match[2]}" if match is not None and match[1] in places else name
