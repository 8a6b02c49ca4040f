"""Windows cover a picture as mmsegmentation lays them, and logits of several passes are averaged pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from esl_dist.prediction.windows import Sight, averaged_logits, windows

SIDES = st.integers(1, 60)


@given(size=st.tuples(SIDES, SIDES), window=st.tuples(SIDES, SIDES), percent=st.integers(0, 90))
@example(size=(1200, 1100), window=(1000, 900), percent=80)
def test_windows_lie_on_the_grid_of_mmsegmentation(
    size: tuple[int, int], window: tuple[int, int], percent: int
) -> None:
    """Its `slide_inference`, with the stride, in whole numbers, that leaves at least the overlap."""
    (width, height), (crop_width, crop_height) = size, (min(window[0], size[0]), min(window[1], size[1]))
    stride_x, stride_y = (max(1, side * (100 - percent) // 100) for side in (crop_width, crop_height))
    expected = []
    for row in range(max(height - crop_height + stride_y - 1, 0) // stride_y + 1):
        for column in range(max(width - crop_width + stride_x - 1, 0) // stride_x + 1):
            bottom, right = min(row * stride_y + crop_height, height), min(column * stride_x + crop_width, width)
            expected.append((slice(bottom - crop_height, bottom), slice(right - crop_width, right)))
    found = list(windows(size, window, percent / 100))
    assert found == expected
    covered = np.zeros((height, width), bool)
    for place in found:
        covered[place] = True
    assert covered.all()


def score(images: Tensor) -> Tensor:
    """Score two classes at the picture's resolution by a pixel and what is at the left of it in the same window."""
    return torch.stack([images[:, 0], images[:, 0].cumsum(-1)], 1)


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(-9, 10, (1, 3, 11, 13))).float()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_each_pixel_has_the_mean_over_the_passes_that_saw_it(images: Tensor, overlap: float, mirror: bool) -> None:
    expected, passes = np.zeros((2, 11, 13)), np.zeros((11, 13))
    for rows, columns in windows((13, 11), (5, 4), overlap):
        part = images[:, :, rows, columns]
        for seen in (part, part.flip(3)) if mirror else (part,):
            scored = score(seen).flip(3) if seen is not part else score(seen)
            expected[:, rows, columns] += scored[0].numpy()
            passes[rows, columns] += 1
    found = averaged_logits(score, images, Sight((5, 4), overlap, mirror))
    np.testing.assert_allclose(found[0].numpy(), expected / passes, rtol=1e-5)
    assert passes.max() > (2 if mirror else 1) or overlap == 0


def test_logits_of_a_window_are_resized_to_it_before_they_are_added(images: Tensor) -> None:
    def coarse(seen: Tensor) -> Tensor:
        return seen[:, :1, :: seen.shape[2] - 1, :: seen.shape[3] - 1]

    found = averaged_logits(coarse, images, Sight((13, 6), 0.0))
    upper = images[0, 0, [0, 5]][:, [0, 12]]
    assert found.shape == (1, 1, 11, 13)
    torch.testing.assert_close(found[0, 0, 0], torch.lerp(upper[0, 0], upper[0, 1], torch.arange(13) / 12))


@pytest.mark.parametrize("window", [(13, 11), (40, 40)])
def test_a_window_that_holds_the_picture_is_no_window(images: Tensor, window: tuple[int, int]) -> None:
    assert torch.equal(averaged_logits(score, images, Sight(window, 0.25)), score(images))
    assert not torch.equal(averaged_logits(score, images, Sight((13, 10), 0.25, True)), score(images))


@pytest.mark.parametrize("sight", [Sight(None, 0.0, True), Sight((6, 6), 0.0, True)])
def test_the_mirror_image_of_a_picture_gets_mirrored_logits(images: Tensor, sight: Sight) -> None:
    square = images[:, :, :, :12]
    mirrored = averaged_logits(score, square.flip(3), sight).flip(3)
    assert torch.equal(averaged_logits(score, square, sight), mirrored)
