"""Predictions are written as colours, train ids or raw ids, and stay in their folder."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esl_dist.data.labels import SemanticClass
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json
from esl_dist.inference.prediction_files import Predicted, PredictionFiles, encoder_of, values_of
from tests.builders import class_set, drawn_samples, write_shards

PREDICTION = torch.tensor([[0, 1, 2], [2, 2, 1]])


def written(tmp_path: Path, kind: str, classes: tuple[SemanticClass, ...] | None = None) -> np.ndarray:
    shards = write_shards(tmp_path / "shards", [("a/b", {"image.png": b""})])
    files = PredictionFiles(tmp_path / "predictions", shards, kind, values_of(classes or class_set(), kind))
    assert not files.are_written()
    files.write(0, PREDICTION)
    assert files.are_written()
    with Image.open(tmp_path / "predictions/a/b.png") as image:
        return np.array(image)


def test_colors_are_those_of_the_classes(tmp_path: Path) -> None:
    colors = np.array([item.color for item in class_set()])
    np.testing.assert_array_equal(written(tmp_path, "colors"), colors[PREDICTION.numpy()])


def test_train_ids_are_the_predictions_themselves(tmp_path: Path) -> None:
    np.testing.assert_array_equal(written(tmp_path, "train_ids"), PREDICTION.numpy())


@pytest.mark.parametrize(("largest", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_raw_ids_are_the_first_of_each_class_in_as_many_bits_as_they_need(
    tmp_path: Path, largest: int, dtype: type
) -> None:
    road, house, sky = class_set()
    classes = (road, house, SemanticClass("sky", sky.color, (largest, 3)))
    expected = np.array([[7, 11, largest], [largest, largest, 11]])
    np.testing.assert_array_equal(written(tmp_path, "raw_ids", classes), expected)
    assert values_of(classes, "raw_ids").dtype == dtype


def test_a_class_without_raw_ids_is_named() -> None:
    road, house, sky = class_set()
    with pytest.raises(UserError, match=r"the class house has no raw ids; .* classes_from="):
        values_of((road, SemanticClass("house", house.color, ()), sky), "raw_ids")


@pytest.mark.parametrize("key", ["../scene", "/scene", "a/../../scene"])
def test_a_key_that_leads_out_of_its_folder_names_no_picture(tmp_path: Path, key: str) -> None:
    shards = write_shards(tmp_path, drawn_samples(1))
    files = PredictionFiles(tmp_path, shards, "train_ids", values_of(class_set(), "train_ids"))
    assert files.file(0).is_relative_to(tmp_path)
    index = read_json(tmp_path / INDEX_NAME)
    index["shards"][0]["samples"][0]["key"] = key
    write_json(tmp_path / INDEX_NAME, index)
    with pytest.raises(UserError, match=r"samples\[0\]\.key.* is impossible"):
        open_shards(tmp_path)


def opened(kind: str, predicted: Predicted, classes: tuple[SemanticClass, ...] | None = None) -> Image.Image:
    return Image.open(BytesIO(encoder_of(kind, classes or class_set())(predicted)))


LABELS = PREDICTION.numpy().astype(np.uint8)
COLORS = np.array([item.color for item in class_set()])


@pytest.mark.parametrize(("kind", "ids"), [("raw_ids", [7, 11, 23]), ("train_ids", [0, 1, 2])])
def test_ids_of_one_s_own_pictures_are_the_indices_of_a_palette_that_shows_the_classes(
    kind: str, ids: list[int]
) -> None:
    image = opened(kind, Predicted(LABELS))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.array(image), np.array(ids)[LABELS])
    np.testing.assert_array_equal(np.array(image.convert("RGB")), COLORS[LABELS])


def test_raw_ids_beyond_8_bits_are_grey_levels_of_16() -> None:
    road, house, sky = class_set()
    image = opened("raw_ids", Predicted(LABELS), (road, house, SemanticClass("sky", sky.color, (1000,))))
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.array(image), np.array([7, 11, 1000])[LABELS])


def test_an_overlay_is_the_mean_of_the_picture_and_the_colors() -> None:
    picture = np.random.RandomState(0).randint(0, 256, (2, 3, 3)).astype(np.uint8)
    picture[0, 0] = 255
    image = opened("overlay", Predicted(LABELS, picture))
    np.testing.assert_array_equal(np.array(image), (picture[:, :, ::-1].astype(int) + COLORS[LABELS]) // 2)
    np.testing.assert_array_equal(np.array(opened("colors", Predicted(LABELS, picture))), COLORS[LABELS])


@pytest.mark.parametrize("kind", ["confidence", "entropy"])
def test_scores_are_grey_levels(kind: str) -> None:
    greys = np.array([[0, 9, 255], [7, 3, 1]], np.uint8)
    image = opened(kind, Predicted(LABELS, scores={kind: greys, "other": LABELS}))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.array(image), greys)
