"""Pictures that keep their aspect ratio are fitted and padded; their labels lie on them at every size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esl_dist.data.images import encode_png, resize_image, resize_label
from esl_dist.data.labels import identity_class_set, train_id_table
from esl_dist.data.loading import MEAN_COLOR, LabelSource, Samples, batches, network_input
from esl_dist.data.sampling import as_they_are
from esl_dist.data.shards import ShardReader
from esl_dist.data.workers import Workers
from tests.builders import as_classes, class_set, draw, write_shards

SIZES = [(40, 10), (10, 40), (32, 24), (7, 5)]
"""Width and height of the pictures: broad, high, as broad as the frame, small."""
FRAME = (16, 12)
FITTED = [(16, 4), (3, 12), (16, 12), (16, 11)]
OWN_FRAMES = [(40, 30), (53, 40), (32, 24), (7, 5)]
"""The pictures' own sizes, filled up to the aspect ratio of the frame: 4 to 3."""


@pytest.fixture
def shards(tmp_path: Path) -> ShardReader:
    samples = []
    for seed, (width, height) in enumerate(SIZES):
        picture, label = draw(seed, width, height)
        samples.append((f"scene_{seed}", {"image.png": encode_png(picture), "label.png": encode_png(label)}))
    return write_shards(tmp_path, samples, keep_aspect_ratio=True)


def labelled(shards: ShardReader, size: tuple[int, int] | None, label_size: tuple[int, int] | None = None) -> Samples:
    return Samples(shards, size, LabelSource(shards, class_set()), label_size)


def train_ids(label: np.ndarray) -> np.ndarray:
    return train_id_table(class_set())[label]


def in_frame(content: np.ndarray, frame: tuple[int, int], value: int) -> np.ndarray:
    """Return `content` at the top left of a frame (width, height) that is else full of `value`."""
    missing = [(0, frame[1] - content.shape[0]), (0, frame[0] - content.shape[1]), (0, 0)][: content.ndim]
    return np.pad(content, missing, constant_values=value)


def test_pictures_are_fitted_and_padded_with_black_before_the_mean_is_taken(shards: ShardReader) -> None:
    samples = labelled(shards, FRAME)
    for seed, fitted in enumerate(FITTED):
        picture = samples[seed]["pictures"]
        expected = in_frame(resize_image(draw(seed, *SIZES[seed])[0], fitted), FRAME, 0)
        np.testing.assert_array_equal(picture.numpy(), expected)
        (image,) = network_input(picture[None])
        right, below = image[:, :, fitted[0] :], image[:, fitted[1] :]
        for channel, mean in enumerate(MEAN_COLOR):
            for padding in (right, below):
                np.testing.assert_allclose(padding[channel].numpy(), -mean, rtol=1e-6)


def test_pictures_at_their_own_size_are_not_padded(shards: ShardReader) -> None:
    samples = labelled(shards, None)
    for seed, size in enumerate(SIZES):
        np.testing.assert_array_equal(samples[seed]["pictures"].numpy(), draw(seed, *size)[0])
        np.testing.assert_array_equal(samples[seed]["labels"].numpy(), train_ids(draw(seed, *size)[1]))


def test_labels_of_a_given_size_are_fitted_and_filled_up_with_what_does_not_count(shards: ShardReader) -> None:
    for size in (FRAME, None):
        samples = labelled(shards, size, FRAME)
        for seed, fitted in enumerate(FITTED):
            expected = in_frame(train_ids(resize_label(draw(seed, *SIZES[seed])[1], fitted)), FRAME, 255)
            label = samples[seed]["labels"]
            assert label.dtype == torch.uint8
            np.testing.assert_array_equal(label.numpy(), expected)


def test_labels_at_their_own_size_are_filled_up_to_the_aspect_ratio_of_the_pictures(shards: ShardReader) -> None:
    samples = labelled(shards, FRAME)
    for seed, (size, frame) in enumerate(zip(SIZES, OWN_FRAMES, strict=True)):
        expected = in_frame(train_ids(draw(seed, *size)[1]), frame, 255)
        np.testing.assert_array_equal(samples[seed]["labels"].numpy(), expected)


def test_what_fills_up_a_label_is_no_class_though_its_number_is_a_raw_id(tmp_path: Path) -> None:
    entries = [{"name": "road", "color": [1, 2, 3], "ids": [0]}, {"name": "sky", "color": [4, 5, 6], "ids": [255]}]
    classes = as_classes(entries)
    label = np.array([[255, 0, 255, 0]], np.uint8)
    members = {"image.png": encode_png(draw(0, 4, 1)[0]), "label.png": encode_png(label)}
    shards = write_shards(tmp_path, [("a", members)], keep_aspect_ratio=True, class_sets={"two": classes})
    for label_size in ((4, 2), None):
        samples = Samples(shards, (4, 2), LabelSource(shards, classes), label_size)
        assert samples[0]["labels"].tolist() == [[1, 0, 1, 0], [255] * 4]


@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("size", [None, FRAME])
def test_batches_say_how_large_each_picture_is_in_its_shards(
    tmp_path: Path, keep_aspect_ratio: bool, size: tuple[int, int] | None
) -> None:
    samples = [(f"scene_{n}", {"image.png": encode_png(draw(n, *own)[0])}) for n, own in enumerate(SIZES)]
    shards = write_shards(tmp_path, samples, keep_aspect_ratio=keep_aspect_ratio)
    order = [[2], [0], [3]] if size is None else [[2, 0], [3]]
    found = list(batches(Samples(shards, size), as_they_are(order), Workers(0, 1), pin_memory=False))
    assert [batch["own_sizes"].tolist() for batch in found] == [
        [list(SIZES[position]) for position in positions] for positions in order
    ]


def test_labels_that_were_padded_when_they_were_made_are_only_resized(shards: ShardReader, tmp_path: Path) -> None:
    """Pseudo-labels of one size are whole frames already, though the pictures keep their aspect ratio."""
    classes = identity_class_set(class_set())
    whole = [np.random.RandomState(seed).randint(0, 3, (24, 30)).astype(np.uint8) for seed in range(len(SIZES))]
    members = [(key, {"label.png": encode_png(label)}) for key, label in zip(shards.keys(), whole, strict=True)]
    labels = write_shards(tmp_path / "labels", members, class_sets={"village3": classes}, label_size=(30, 24))
    samples = Samples(shards, FRAME, LabelSource(labels, classes), FRAME)
    for position, label in enumerate(whole):
        np.testing.assert_array_equal(samples[position]["labels"].numpy(), resize_label(label, FRAME))


def test_the_same_pictures_are_stretched_where_the_data_set_does_not_keep_aspect_ratios(tmp_path: Path) -> None:
    picture, label = draw(0, 40, 10)
    members = {"image.png": encode_png(picture), "label.png": encode_png(label)}
    sample = labelled(write_shards(tmp_path, [("a", members)]), FRAME, FRAME)[0]
    np.testing.assert_array_equal(sample["pictures"].numpy(), resize_image(picture, FRAME))
    np.testing.assert_array_equal(sample["labels"].numpy(), train_ids(resize_label(label, FRAME)))
