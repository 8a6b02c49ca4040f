"""The discriminator of AdvEnt (arXiv 1811.12833, section 3.2; its design is that of DCGAN).

It reads the weighted self-information map of a prediction and says, patch by patch, from which domain it comes.
"""

import itertools

from torch import nn


def build_discriminator(classes: int) -> nn.Sequential:
    """Return five 4×4 convolutions of stride 2: classes → 64 → 128 → 256 → 512 → 1, leaky ReLU 0.2 between them.

    It maps (batch, classes, height, width) to logits of about a 32nd of height and width; 0 means source, 1 target.
    """
    widths = (classes, 64, 128, 256, 512)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 2, 1))
