"""Pictures show what the network read, what it predicts in the colours of the classes, and where it is unsure."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from esl_dist.config import Domain
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise
from esl_dist.reporting.pictures import (
    BACKGROUND,
    LINE,
    MARGIN,
    PANEL_WIDTH,
    class_colors,
    entropy_colors,
    legend,
    natural_colors,
    predicted_pictures,
    row,
)
from tests.builders import class_set, draw, input_of

COLORS = [item.color for item in class_set()]


@given(arrays(np.uint8, (3, 4, 3)))
@settings(deadline=None, max_examples=50)
def test_natural_colours_are_those_of_the_picture_that_was_read(picture: np.ndarray) -> None:
    """Pictures are read as BGR and shown as RGB."""
    result = natural_colors(input_of(picture)[0])
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, picture[:, :, ::-1])


def test_what_no_picture_has_is_shown_as_the_nearest_colour() -> None:
    image = input_of(draw(0)[0])[0]
    assert natural_colors(image + 1000).min() == 255
    assert natural_colors(image - 1000).max() == 0


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_classes_have_their_colours_and_what_is_no_class_is_black(kind: torch.dtype) -> None:
    labels = torch.tensor([[0, 1, 2], [255, 3, 0]], dtype=kind)
    painted = class_colors(labels, class_set())
    assert painted.dtype == np.uint8
    black = (0, 0, 0)
    assert painted.tolist() == [[list(c) for c in row] for row in (COLORS, [black, black, COLORS[0]])]


def test_entropy_goes_from_dark_blue_to_yellow() -> None:
    low, high = entropy_colors(torch.tensor([[0.0, 1.0]]))[0].astype(int)
    assert low.sum() < 200
    assert low[2] > low[1], "blue"
    assert min(high[0], high[1]) > 220
    assert high[2] < 60, "yellow is red and green"


def test_higher_entropy_is_brighter() -> None:
    painted = entropy_colors(torch.linspace(0, 1, 256)[None])
    assert (painted.dtype, painted.shape) == (np.uint8, (1, 256, 3))
    brightness = painted[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > -1).all()
    assert (np.diff(brightness[::8]) > 0).all()


@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_prediction_is_shown_with_the_statistics_of_its_domain_and_changes_nothing(domain: Domain) -> None:
    torch.manual_seed(0)
    network = DeepLab("tiny", 3, True, True)
    initialise(network)
    images = torch.cat([input_of(draw(seed, 48, 40)[0]) for seed in range(2)])
    network.train()
    with torch.no_grad():
        for one in ("source", "target"):
            network(images * (1 if one == "source" else 0.2), one)
    network.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pictures = predicted_pictures(network, images, domain, class_set())
    assert list(pictures) == ["prediction", "entropy"]
    assert {picture.shape for picture in pictures.values()} == {(40, 48, 3)}

    expected = {}
    with torch.no_grad():
        for one in ("source", "target"):
            small = network(images[:1], one)["main"]
            logits = F.interpolate(small, (40, 48), mode="bilinear", align_corners=True)[0]
            chances = logits.softmax(0)
            entropy = -(chances * chances.log()).sum(0) / np.log(3)
            prediction = np.array(COLORS, np.uint8)[logits.argmax(0).numpy()]
            expected[one] = {"prediction": prediction, "entropy": entropy_colors(entropy)}
    for kind in ("prediction", "entropy"):
        differing = np.abs(pictures[kind].astype(int) - expected[domain][kind].astype(int)).max(2) > 3
        assert differing.mean() < 0.01, "but for what lies between two colours"
    other = expected["source" if domain == "target" else "target"]
    assert not np.array_equal(other["entropy"], expected[domain]["entropy"])
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def panel(shown: np.ndarray, number: int, height: int) -> np.ndarray:
    """Return what is below the title of a row's panel."""
    left = number * (PANEL_WIDTH + MARGIN)
    return shown[LINE : LINE + height, left : left + PANEL_WIDTH]


@pytest.mark.parametrize("width", [20, 50, 1000])
def test_a_row_has_its_pictures_side_by_side_in_their_own_colours(width: int) -> None:
    random = np.random.default_rng(1)
    labels = np.array([*COLORS, (0, 0, 0)], np.uint8)[random.integers(0, 4, (width // 2, width))]
    small = labels[::2, ::2]
    shown = row({"image": labels, "ground truth": small, "prediction": labels}, class_set())
    assert shown.shape == (LINE + 200 + LINE, 3 * PANEL_WIDTH + 2 * MARGIN, 3)
    colors = {tuple(color) for color in panel(shown, 2, 200).reshape(-1, 3).tolist()}
    assert colors <= {tuple(color) for color in [*COLORS, (0, 0, 0)]}, "no colour between two classes"
    if PANEL_WIDTH % width == 0:
        factor = PANEL_WIDTH // width
        np.testing.assert_array_equal(panel(shown, 0, 200), labels.repeat(factor, 0).repeat(factor, 1))
    titles = shown[:LINE]
    for number in range(3):
        left = number * (PANEL_WIDTH + MARGIN)
        assert (titles[:, left : left + 60] < BACKGROUND).any(), "each picture has a title"


def test_a_legend_has_every_class_in_its_colour_and_takes_the_lines_that_it_needs() -> None:
    wide, narrow = legend(class_set(), 1200), legend(class_set(), 90)
    assert wide.shape == (LINE, 1200, 3)
    assert narrow.shape == (4 * LINE, 90, 3)
    for shown in (wide, narrow):
        found = {tuple(color) for color in shown.reshape(-1, 3).tolist()}
        assert {tuple(color) for color in COLORS} <= found
        assert (0, 0, 0) in found


def test_a_name_that_the_font_has_not_is_written_as_far_as_it_goes() -> None:
    named = [tuple(replace(item, name=name) for item in class_set()) for name in ("Straße é", "Stra?e e")]
    np.testing.assert_array_equal(*(legend(one, 600) for one in named))
