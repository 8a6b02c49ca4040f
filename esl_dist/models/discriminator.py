"""The discriminator of AdvEnt (arXiv 1811.12833, section 3.2; its design is that of DCGAN).

It reads the weighted self-information map of a prediction and says, patch by patch, from which domain it comes.
"""

import itertools

from torch import nn

CONVOLUTIONS = 5
LEAST_SIDE: int = 2**CONVOLUTIONS
"""Pixels of a side: each convolution halves it, rounded down, and needs two."""


def build_discriminator(classes: int, channels: int = 64) -> nn.Sequential:
    """Return five 4×4 convolutions of stride 2: classes → 64 → 128 → 256 → 512 → 1, leaky ReLU 0.2 between them.

    `channels` stands for the 64, of which the other widths are multiples.

    It maps (batch, classes, height, width) to logits of about a 32nd of height and width; 0 means source, 1 target.
    """
    widths = (classes, channels, 2 * channels, 4 * channels, 8 * channels)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
    assert len(widths) == CONVOLUTIONS
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 2, 1))
