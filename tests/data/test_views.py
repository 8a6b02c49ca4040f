"""What is seen of a picture is a slice of the resized picture, drawn by seed, domain and number alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.images import encode_png, resize_image, resize_label
from esl_dist.data.labels import train_id_table
from esl_dist.data.loading import LabelSource, Samples
from esl_dist.data.sampling import DrawKey, Wanted
from esl_dist.data.shards import ShardReader
from esl_dist.data.views import AS_IT_IS, TRIES, Draw, Views, Window, as_shares, draw, seen, window
from tests.builders import class_set, drawn_shards, write_shards
from tests.builders import draw as drawn_picture

LIMITS = settings(max_examples=60, deadline=None)
ROAD, HOUSE = 0, 1
FIRST_NUMBERS = [0.2395462092755919, 0.36732527842634644, 0.8700387427058073, 0.0064452993312135165]
"""Of NumPy 2.4."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return drawn_shards(tmp_path_factory.mktemp("views"), 3, width=40, height=30)


def labelled(shards: ShardReader, views: Views, **more: Any) -> Samples:
    return Samples(shards, labels=LabelSource(shards, class_set()), views=views, **{"size": None, **more})


def wanted(position: int, number: int, train_id: int | None = None) -> Wanted:
    return Wanted(position, DrawKey(5, 0, number), train_id)


def test_what_is_drawn_for_a_number_stays_the_same_in_every_version() -> None:
    first = draw(Views((0.5, 1.5), (8, 8), True), DrawKey(3, 1, 10**12))
    assert first.scale == pytest.approx(0.5 + FIRST_NUMBERS[0], abs=0)
    assert first.mirrored == (FIRST_NUMBERS[1] < 0.5)
    assert first.corners[0].tolist() == FIRST_NUMBERS[2:]
    assert first.corners.shape == (TRIES, 2)


def test_draws_differ_by_seed_domain_and_number() -> None:
    keys = [DrawKey(0, 0, 0), DrawKey(1, 0, 0), DrawKey(0, 1, 0), DrawKey(0, 0, 1), DrawKey(0, 0, 2**40)]
    assert len({tuple(draw(Views(crop=(1, 1)), key).corners.ravel()) for key in keys}) == len(keys)


def test_scale_and_mirror_are_drawn_evenly() -> None:
    draws = [draw(Views((0.5, 1.5), None, True), DrawKey(0, 0, number)) for number in range(4000)]
    scales = np.array([one.scale for one in draws])
    assert scales.min() >= 0.5
    assert scales.max() < 1.5
    np.testing.assert_allclose(np.histogram(scales, 4, (0.5, 1.5))[0], 1000, atol=150)
    assert sum(one.mirrored for one in draws) == pytest.approx(2000, abs=160)


def test_every_place_of_a_part_is_as_likely() -> None:
    views = Views(crop=(3, 4))
    places = [window(views, draw(views, DrawKey(0, 0, number)), (5, 4), None, None) for number in range(3000)]
    assert {(one.top, one.bottom) for one in places} == {(0, 4)}
    np.testing.assert_allclose(np.bincount([one.left for one in places]), [1000] * 3, atol=130)


crops = st.tuples(st.integers(1, 50), st.integers(1, 40))


@LIMITS
@given(st.integers(0, 2), st.integers(0, 2**45), crops, st.floats(0.3, 2), st.booleans())
def test_a_part_is_the_slice_of_the_resized_picture_and_of_its_label(
    shards: ShardReader, position: int, number: int, crop: tuple[int, int], greatest: float, mirror: bool
) -> None:
    width, height = crop
    views = Views((min(greatest, 0.8), greatest), (width, height), mirror)
    sample = labelled(shards, views).read(wanted(position, number))
    picture, raw = drawn_picture(position, 40, 30)
    drawn = draw(views, DrawKey(5, 0, number))
    size = (max(1, round(40 * drawn.scale)), max(1, round(30 * drawn.scale)))
    left = int(drawn.corners[0, 0] * (max(size[0] - width, 0) + 1))
    top = int(drawn.corners[0, 1] * (max(size[1] - height, 0) + 1))
    whole = np.zeros((top + height, left + width, 3), np.uint8)
    whole_label = np.full(whole.shape[:2], 255, np.uint8)
    resized = resize_image(picture, size)[: top + height, : left + width]
    whole[: resized.shape[0], : resized.shape[1]] = resized
    ids = train_id_table(class_set())[resize_label(raw, size)][: top + height, : left + width]
    whole_label[: ids.shape[0], : ids.shape[1]] = ids
    expected, label = whole[top:, left:], whole_label[top:, left:]
    if drawn.mirrored:
        expected, label = expected[:, ::-1], label[:, ::-1]
    np.testing.assert_array_equal(sample["pictures"].numpy(), expected)
    np.testing.assert_array_equal(sample["labels"].numpy(), label)
    assert sample["valid_pixels"].item() == np.count_nonzero(label != 255)
    assert sample["mirrored"].item() == drawn.mirrored
    shares = np.array([left, top, left + width, top + height]) / np.array([*size, *size])
    np.testing.assert_array_equal(sample["windows"].numpy(), shares)
    assert sample["windows"].dtype == torch.float64


def test_without_draws_a_sample_is_what_it_was(shards: ShardReader) -> None:
    plain, keyed = labelled(shards, AS_IT_IS)[1], labelled(shards, AS_IT_IS).read(wanted(1, 7, ROAD))
    drawing = labelled(shards, Views((0.5, 2), (8, 8), True))[1]
    for name, tensor in plain.items():
        assert torch.equal(keyed[name], tensor), name
        assert torch.equal(drawing[name], tensor), f"{name}: evaluation sees whole pictures"
    assert plain["windows"].tolist() == [0, 0, 1, 1]
    assert not plain["mirrored"]


def test_a_mirrored_picture_and_label_of_other_sizes_stay_at_their_sizes(shards: ShardReader) -> None:
    samples = labelled(shards, Views(mirror=True), size=(20, 15), label_size=(10, 5))
    number = next(n for n in range(99) if draw(samples.views, DrawKey(5, 0, n)).mirrored)
    plain, mirrored = samples[2], samples.read(wanted(2, number))
    assert mirrored["mirrored"]
    assert torch.equal(mirrored["pictures"], plain["pictures"].flip(1))
    assert torch.equal(mirrored["labels"], plain["labels"].flip(1))


def test_padding_of_a_kept_aspect_ratio_lies_beyond_the_picture(tmp_path: Path) -> None:
    picture, raw = drawn_picture(0, 20, 10)
    members = {"image.png": encode_png(picture), "label.png": encode_png(raw)}
    shards = write_shards(tmp_path, [("a", members)], keep_aspect_ratio=True)
    sample = labelled(shards, AS_IT_IS, size=(20, 20), label_size=(20, 20))[0]
    assert sample["windows"].tolist() == [0, 0, 1, 2]
    part = labelled(shards, Views(crop=(20, 15)), size=(20, 20)).read(wanted(0, 0))
    np.testing.assert_array_equal(part["pictures"][:10].numpy(), picture)
    assert not part["pictures"][10:].any()
    assert (part["labels"][10:] == 255).all()
    assert part["label_sizes"].tolist() == [20, 10]


def corners_at(*lefts: int, places: int) -> Draw:
    """Return a draw that tries parts at these places from the left, and after them at the last one."""
    tried = [*lefts, *[places - 1] * (TRIES - len(lefts))]
    return Draw(1.0, False, np.array([[(left + 0.5) / places, 0.0] for left in tried]))


@pytest.mark.parametrize(
    ("label", "views", "train_id", "left"),
    [
        ([0, 0, 0, 1, 1, 0], Views(crop=(4, 1), largest_class_share=0.75), None, 1),
        ([0, 0, 0, 1, 1, 0], Views(crop=(4, 1), largest_class_share=0.76), None, 0),
        ([0, 0, 255, 1, 1, 0], Views(crop=(4, 1), largest_class_share=0.6), None, 2),
        ([255, 255, 255, 255, 1, 0], Views(crop=(4, 1), largest_class_share=0.99), None, 2),
        ([0, 0, 0, 0, 1, 1], Views(crop=(4, 1), least_in_crop=1), HOUSE, 2),
        ([0, 0, 0, 0, 1, 1], Views(crop=(4, 1), least_in_crop=0), HOUSE, 1),
        ([0, 0, 0, 0, 1, 1], Views(crop=(4, 1), least_in_crop=0), ROAD, 0),
        ([0, 0, 0, 0, 0, 0], Views(crop=(4, 1), largest_class_share=0.75), None, 2),
        ([0, 0, 0, 1, 1, 0], Views(crop=(4, 1)), None, 0),
    ],
)
def test_a_part_is_tried_again_until_it_shows_enough(
    label: list[int], views: Views, train_id: int | None, left: int
) -> None:
    drawn = corners_at(0, 1, places=3)
    found = window(views, drawn, (6, 1), np.array([label], np.uint8), train_id)
    assert found == Window(left, 0, left + 4, 1)


def test_a_part_beyond_a_small_picture_is_told_as_such() -> None:
    assert as_shares(Window(0, 0, 8, 6), (4, 6)) == (0, 0, 2, 1)
    part = seen(np.ones((6, 4), np.uint8), Window(0, 0, 8, 6), True, 9)
    assert part.tolist() == [[9] * 4 + [1] * 4] * 6
