"""Strong augmentation: each change of colour and the blur against plain computations, and who draws what."""

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation import augmentation
from esl_dist.adaptation.augmentation import augmented, blurred, jittered, kernel_size
from esl_dist.data.loading import network_input

HEIGHT, WIDTH = 24, 56
ALWAYS = settings.Augmentation(jitter=1.0, blur=1.0)


def pictures(count: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return network_input(torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), generator=random).to(torch.uint8))


def rgb(image: Tensor) -> np.ndarray:
    """Return red, green and blue in [0, 1], (3, height, width), of a network's input."""
    mean = np.array([104.00698793, 116.66876762, 122.67891434])[:, None, None]
    return ((image.double().numpy() + mean) / 255)[::-1]


def grey(color: np.ndarray) -> np.ndarray:
    return 0.2989 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def turned(color: np.ndarray, part: float) -> np.ndarray:
    result = np.empty_like(color)
    for y, x in np.ndindex(color.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*color[:, y, x])
        result[:, y, x] = colorsys.hsv_to_rgb((hue + part) % 1, saturation, value)
    return result


CHANGES = {
    "brightness": lambda color, change: (1 + change) * color,
    "contrast": lambda color, change: (1 + change) * color - change * grey(color).mean(),
    "saturation": lambda color, change: (1 + change) * color - change * grey(color),
    "hue": turned,
}


@pytest.mark.parametrize("change", [-0.2, 0.15])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_colour_is_that_of_its_formula_in_rgb_cut_to_what_a_picture_can_show(
    name: str, change: float
) -> None:
    number = list(CHANGES).index(name)
    image = pictures()[0]
    found = jittered(image, [change if one == number else 0.0 for one in range(4)], [number])
    expected = np.clip(CHANGES[name](rgb(image), change), 0, 1)
    np.testing.assert_allclose(rgb(found), expected, atol=2e-6)
    assert np.abs(expected - rgb(image)).max() > 0.05


def test_changes_are_made_one_after_the_other_in_their_order() -> None:
    image, changes = pictures()[0], [0.2, -0.2, 0.1, 0.05]
    expected = rgb(image)
    for number in (2, 3, 0, 1):
        expected = np.clip(list(CHANGES.values())[number](expected, changes[number]), 0, 1)
    np.testing.assert_allclose(rgb(jittered(image, changes, [2, 3, 0, 1])), expected, atol=5e-6)
    assert np.abs(rgb(jittered(image, changes, [0, 1, 2, 3])) - expected).max() > 0.01


def test_the_kernel_is_as_published() -> None:
    assert [kernel_size(side) for side in (512, 1024, 1120, 360, 10, 1)] == [51, 103, 111, 35, 1, 1]
    assert all(kernel_size(side) % 2 == 1 and kernel_size(side) // 2 < side for side in range(1, 3000))


@pytest.mark.parametrize("deviation", [0.15, 0.7, 1.15])
def test_a_blur_is_the_mean_of_neighbours_weighed_by_a_gaussian(deviation: float) -> None:
    image = pictures()[0].double()
    tall, wide = kernel_size(HEIGHT), kernel_size(WIDTH)
    assert tall != wide
    around = np.pad(image.numpy(), ((0, 0), (tall // 2,) * 2, (wide // 2,) * 2), mode="reflect")
    total, weights = np.zeros((3, HEIGHT, WIDTH)), 0.0
    for dy, dx in np.ndindex(tall, wide):
        weight = np.exp(-((dy - tall // 2) ** 2 + (dx - wide // 2) ** 2) / (2 * deviation**2))
        total += weight * around[:, dy : dy + HEIGHT, dx : dx + WIDTH]
        weights += weight
    np.testing.assert_allclose(blurred(image, deviation), total / weights, rtol=1e-9, atol=1e-9)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_picture_is_changed_by_its_own_generator_alone_wherever_it_stands() -> None:
    images = pictures(3)
    before = images.clone()
    together = augmented(images, generators(5, 6, 7), ALWAYS)
    assert torch.equal(images, before)
    assert torch.equal(together[1:2], augmented(images[1:2], generators(6), ALWAYS))
    assert not torch.equal(together[1:2], augmented(images[1:2], generators(7), ALWAYS))


def test_channels_that_lie_last_still_do() -> None:
    images = pictures().to(memory_format=torch.channels_last)
    found = augmented(images, generators(1, 2), ALWAYS)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, augmented(pictures(), generators(1, 2), ALWAYS))


def test_each_change_comes_about_as_often_as_asked_and_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[float] = []
    deviations: list[float] = []

    def noted_changes(image: Tensor, drawn: list[float], order: list[int]) -> Tensor:
        assert sorted(order) == [0, 1, 2, 3]
        changes.extend(drawn)
        return image

    def noted_blur(image: Tensor, deviation: float) -> Tensor:
        deviations.append(deviation)
        return image

    monkeypatch.setattr(augmentation, "jittered", noted_changes)
    monkeypatch.setattr(augmentation, "blurred", noted_blur)
    images = torch.zeros(2000, 3, 1, 1)
    assert torch.equal(augmented(images, generators(*range(2000)), settings.Augmentation()), images)
    # Five standard deviations of a share of 2000.
    assert len(changes) / 4 / 2000 == pytest.approx(0.8, abs=0.05)
    assert len(deviations) / 2000 == pytest.approx(0.5, abs=0.06)
    assert (min(changes), max(changes)) == pytest.approx((-0.2, 0.2), abs=0.002)
    assert (min(deviations), max(deviations)) == pytest.approx((0.15, 1.15), abs=0.01)
    changes.clear()
    deviations.clear()
    augmented(images, generators(*range(2000)), settings.Augmentation(jitter=0.0, blur=0.0))
    assert changes == deviations == []
