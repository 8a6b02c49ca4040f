"""The light decoder of VFM-UDA, written out place by place."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from esl_dist.models.decoders import TransposedDecoder

Array = NDArray[np.float64]
INPUTS, CLASSES = 12, 5


def fourfold(maps: Array, weight: Array, bias: Array) -> Array:
    """Return a transposed convolution of 2×2 with stride 2: each place becomes four, which overlap with no other's."""
    batch, _, height, width = maps.shape
    output = np.empty((batch, weight.shape[1], 2 * height, 2 * width))
    for row, column in np.ndindex(2, 2):
        output[:, :, row::2, column::2] = np.einsum("bihw,io->bohw", maps, weight[:, :, row, column])
    return output + bias[:, None, None]


def normalised(maps: Array, weight: Array, bias: Array) -> Array:
    """Return maps whose channels have mean 0 and variance 1 at each place, then a scale and a shift each."""
    mean, variance = maps.mean(1, keepdims=True), maps.var(1, keepdims=True)
    return (maps - mean) / np.sqrt(variance + 1e-6) * weight[:, None, None] + bias[:, None, None]


def gelu(maps: Array) -> Array:
    return maps * (1 + np.vectorize(math.erf)(maps / math.sqrt(2))) / 2


def convolved(maps: Array, weight: Array, bias: Array) -> Array:
    """Return a convolution of 3×3 over maps with a border of 0."""
    height, width = maps.shape[2:]
    bordered = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return bias[:, None, None] + sum(
        np.einsum(
            "bihw,oi->bohw", bordered[:, :, row : row + height, column : column + width], weight[:, :, row, column]
        )
        for row, column in np.ndindex(3, 3)
    )


def test_it_computes_the_published_layers() -> None:
    torch.manual_seed(0)
    decoder = TransposedDecoder(INPUTS, CLASSES).double()
    # Norms begin with 1 and 0, which would hide a scale or a shift that is missing.
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    maps = torch.randn(2, INPUTS, 3, 4, dtype=torch.float64)
    weights = iter([parameter.detach().numpy() for parameter in decoder.parameters()])

    expected = fourfold(maps.numpy(), next(weights), next(weights))
    expected = gelu(normalised(expected, next(weights), next(weights)))
    expected = normalised(fourfold(expected, next(weights), next(weights)), next(weights), next(weights))
    expected = normalised(convolved(expected, next(weights), next(weights)), next(weights), next(weights))
    expected = np.einsum("bihw,oi->bohw", expected, next(weights)[:, :, 0, 0])
    assert next(weights, None) is None, "scores have no bias"

    found = decoder(maps).detach().numpy()
    assert found.shape == (2, CLASSES, 12, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_channels_are_halved_twice_and_scores_begin_small() -> None:
    torch.manual_seed(0)
    *layers, scores = TransposedDecoder(256, 100)
    assert [layer.out_channels for layer in layers if hasattr(layer, "out_channels")] == [128, 64, 64]
    assert scores.weight.shape == (100, 64, 1, 1)
    # Of 6,400 draws of N(0, 0.1), within six standard errors.
    assert abs(float(scores.weight.detach().std()) - 0.1) < 6 * 0.1 / math.sqrt(2 * 6400)
    assert abs(float(scores.weight.detach().mean())) < 6 * 0.1 / math.sqrt(6400)
