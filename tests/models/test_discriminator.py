"""The discriminator is the published one: five strided convolutions, leaky ReLU between them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esl_dist.models.discriminator import build_discriminator


def test_names_and_shapes_are_the_published_ones() -> None:
    widths = [19, 64, 128, 256, 512, 1]
    expected = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        expected[f"{2 * number}.weight"] = (outputs, inputs, 4, 4)
        expected[f"{2 * number}.bias"] = (outputs,)
    assert {name: tuple(tensor.shape) for name, tensor in build_discriminator(19).state_dict().items()} == expected


def test_channels_scale_every_layer() -> None:
    widths = [layer.out_channels for layer in build_discriminator(5, channels=8) if hasattr(layer, "out_channels")]
    assert widths == [8, 16, 32, 64, 1]


def test_output_is_that_of_strided_convolutions_and_leaky_relus() -> None:
    discriminator = build_discriminator(3, channels=4).double()
    maps = torch.randn(2, 3, 70, 66, dtype=torch.float64)
    expected = maps
    state = discriminator.state_dict()
    for number in range(5):
        weight, bias = state[f"{2 * number}.weight"], state[f"{2 * number}.bias"]
        expected = F.conv2d(expected, weight, bias, stride=2, padding=1)
        if number < 4:
            expected = torch.where(expected > 0, expected, 0.2 * expected)
    torch.testing.assert_close(discriminator(maps), expected, rtol=1e-12, atol=1e-12)


@given(height=st.integers(32, 400), width=st.integers(32, 400))
@settings(deadline=None, max_examples=30)
def test_output_has_a_32nd_of_the_height_and_width(height: int, width: int) -> None:
    with torch.device("meta"):
        output = build_discriminator(2, channels=2)(torch.empty(1, 2, height, width))
    assert output.shape == (1, 1, height // 32, width // 32)


@pytest.mark.parametrize("classes", [2, 7])
def test_every_weight_can_learn(classes: int) -> None:
    discriminator = build_discriminator(classes, channels=2)
    discriminator(torch.randn(1, classes, 64, 64)).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters()
    )
