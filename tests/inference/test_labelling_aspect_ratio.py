"""Pseudo-labels of pictures that keep their aspect ratio: padding is neither counted nor labelled, and they line up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_files import from_dictionary
from esl_dist.data.images import decode_label, encode_png, fitted_size, resize_label
from esl_dist.data.labels import class_names, train_id_table
from esl_dist.data.loading import MEAN_COLOR, Samples, network_input
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import UserError
from esl_dist.inference.labelling.job import label_job, write_pseudo_labels
from esl_dist.prediction.predictor import Predictor
from esl_dist.runs.trained import TrainedNetwork
from esl_dist.training.data import TrainingData, open_training_data
from tests.builders import class_set, draw, drawn_shards, input_of, write_shards
from tests.inference.trained import trained_network
from tests.training.small_runs import configuration, tiny_network

SIZES = [(80, 30), (24, 60), (64, 48), (50, 40)]
FRAME = (64, 48)
FITTED = [(64, 24), (19, 48), (64, 48), (60, 48)]
KEEP_ALL = {"entropy_floor": 1.0}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(target_of(tmp_path_factory.mktemp("target"), SIZES).folder)


def target_of(folder: Path, sizes: list[tuple[int, int]]) -> ShardReader:
    samples = []
    for seed, size in enumerate(sizes):
        picture, label = draw(seed, *size)
        samples.append((f"scene_{seed}", {"image.png": encode_png(picture), "label.png": encode_png(label)}))
    image_size = sizes[0] if len(set(sizes)) == 1 else None
    return write_shards(folder, samples, keep_aspect_ratio=True, image_size=image_size, label_size=image_size)


@pytest.fixture(scope="module")
def trained() -> TrainedNetwork:
    """Return a network that predicts every class: no class's logits are higher on the whole."""
    network = tiny_network(2)
    with torch.no_grad():
        means = network(input_of(draw(9, *FRAME)[0]))["main"].mean((0, 2, 3))
        next(network.layer6.conv2d_list.children()).bias.sub_(means)
    return trained_network(network)


def label(
    trained: TrainedNetwork, target: Path, output: Path, size: tuple[int, int] | None, **changes: Any
) -> dict[str, Any]:
    """Write pseudo-labels as launch/pseudo_label.py does; returns the summary."""
    given = {"path": str(target), "size": None if size is None else list(size)}
    values = {"checkpoint": "r", "target": given, "output": str(output), "workers": 0}
    config = from_dictionary(settings.PseudoLabel, values | changes, "test")
    return write_pseudo_labels(label_job(config, open_shards(target), Predictor(trained, size=size)))


def written(folder: Path) -> list[np.ndarray]:
    reader = open_shards(folder)
    return [decode_label(reader.read(position, "label")) for position in range(len(reader))]


def predicted(trained: TrainedNetwork, image: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the class of the highest upsampled probability, (height, width)."""
    with torch.inference_mode():
        probabilities = F.softmax(trained.network(image)["main"], dim=1)
        upsampled = F.interpolate(probabilities, size[::-1], mode="bilinear", align_corners=True)
    return upsampled[0].argmax(0).numpy()


def counts(summary: dict[str, Any], kind: str) -> dict[str, int]:
    return {name: row[kind] for name, row in summary["classes"].items()}


def open_data(
    target: Path, pseudo: Path, source: Path, size: tuple[int, int] | None, crop: list[int] | None = None
) -> TrainingData:
    config = configuration(
        source={"path": str(source)},
        target={"path": str(target), "size": None if size is None else list(size), "crop": crop},
        pseudo_labels=str(pseudo),
    )
    return open_training_data(config, METHODS["minent"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shards = drawn_shards(tmp_path / "drawn", 1)
    samples = [("a", {"image.png": shards.read(0, "image"), "label.png": shards.read(0, "label")})]
    return Path(write_shards(tmp_path / "source", samples, image_size=(16, 12), label_size=(16, 12)).folder)


@pytest.mark.parametrize("label_size", [None, (128, 96)])
def test_what_is_predicted_in_the_padding_is_neither_counted_nor_labelled(
    trained: TrainedNetwork, target: Path, tmp_path: Path, label_size: tuple[int, int] | None
) -> None:
    asked = {"label_size": None if label_size is None else list(label_size)}
    summary = label(trained, target, tmp_path / "out", FRAME, **asked, **KEEP_ALL)
    frame = label_size or FRAME
    expected = np.zeros(len(class_set()), np.int64)
    samples = Samples(open_shards(target), FRAME)
    for position, (pseudo_label, size) in enumerate(zip(written(tmp_path / "out"), SIZES, strict=True)):
        width, height = fitted_size(size, frame)
        assert pseudo_label.shape == frame[::-1]
        content = predicted(trained, network_input(samples[position]["pictures"][None]), frame)[:height, :width]
        np.testing.assert_array_equal(pseudo_label[:height, :width], content)
        assert (pseudo_label[height:] == 255).all()
        assert (pseudo_label[:, width:] == 255).all()
        expected += np.bincount(content.flatten(), minlength=len(expected))
    assert (expected > 0).sum() > 1, "this network predicts more than one class"
    assert counts(summary, "pixels_predicted") == dict(zip(class_names(class_set()), expected.tolist(), strict=True))
    assert summary["kept"] == 1
    index = open_shards(tmp_path / "out").index
    assert (index.label_size, index.keep_aspect_ratio) == (frame, False)


def test_thresholds_and_what_they_keep_are_those_of_the_pictures_alone(
    trained: TrainedNetwork, target: Path, tmp_path: Path
) -> None:
    summary = label(trained, target, tmp_path / "out", FRAME, entropy_floor=0.0)
    kept = np.zeros(len(class_set()), np.int64)
    for pseudo_label in written(tmp_path / "out"):
        kept += np.bincount(pseudo_label.flatten(), minlength=256)[: len(kept)]
    assert list(counts(summary, "pixels_kept").values()) == kept.tolist()
    area = sum(width * height for width, height in FITTED)
    assert sum(counts(summary, "pixels_predicted").values()) == area
    for name, number in counts(summary, "pixels_predicted").items():
        # The threshold is the median, so half of them and what has its very score.
        assert number / 2 <= counts(summary, "pixels_kept")[name] <= number / 2 + max(2, 0.02 * number)
    assert summary["kept"] == pytest.approx(kept.sum() / area)


def test_accuracy_is_that_of_the_pictures_alone(trained: TrainedNetwork, target: Path, tmp_path: Path) -> None:
    summary = label(trained, target, tmp_path / "out", FRAME, **KEEP_ALL, compare_with_labels=True)
    right = counted = 0
    for seed, (pseudo_label, (width, height)) in enumerate(zip(written(tmp_path / "out"), FITTED, strict=True)):
        truth = train_id_table(class_set())[resize_label(draw(seed, *SIZES[seed])[1], (width, height))]
        right += int((pseudo_label[:height, :width] == truth).sum())
        counted += int((truth != 255).sum())
    assert summary["accuracy"] == pytest.approx(right / counted)


@pytest.mark.parametrize("score", ["entropy", "confidence"])
def test_without_a_size_each_picture_is_labelled_at_its_own(
    trained: TrainedNetwork, target: Path, tmp_path: Path, score: str
) -> None:
    summary = label(trained, target, tmp_path / "out", None, **KEEP_ALL, confidence_ceiling=0.0, score=score)
    index = open_shards(tmp_path / "out").index
    assert (index.label_size, index.keep_aspect_ratio) == (None, True)
    for seed, (pseudo_label, size) in enumerate(zip(written(tmp_path / "out"), SIZES, strict=True)):
        np.testing.assert_array_equal(
            pseudo_label, predicted(trained, input_of(draw(seed, *size)[0]), size).astype(np.uint8)
        )
    area = sum(width * height for width, height in SIZES)
    assert sum(counts(summary, "pixels_predicted").values()) == area


def test_pictures_of_one_size_give_labels_of_one_size(trained: TrainedNetwork, tmp_path: Path) -> None:
    target = target_of(tmp_path / "target", [(40, 20)] * 3).folder
    label(trained, target, tmp_path / "out", None, **KEEP_ALL)
    assert open_shards(tmp_path / "out").index.label_size == (40, 20)
    assert [(one.shape, (one == 255).any()) for one in written(tmp_path / "out")] == [((20, 40), False)] * 3


@pytest.mark.parametrize("size", [None, (64, 32)])
def test_a_label_size_that_padded_pictures_do_not_bear_is_refused_before_anything_is_written(
    trained: TrainedNetwork, target: Path, tmp_path: Path, size: tuple[int, int] | None
) -> None:
    with pytest.raises(UserError, match=r"label_size=\[48, 48\] is impossible: .* keeps the aspect ratio"):
        label(trained, target, tmp_path / "out", size, label_size=[48, 48])
    assert not (tmp_path / "out").exists()


def test_padded_labels_are_refused_for_pictures_that_are_read_without_padding(
    trained: TrainedNetwork, source: Path, tmp_path: Path
) -> None:
    target = target_of(tmp_path / "target", [(40, 20)] * 3).folder
    label(trained, target, tmp_path / "out", FRAME)
    with pytest.raises(UserError, match=r"padded to 64×48, the pictures are read at 40×20; choose a target\.size"):
        open_data(target, tmp_path / "out", source, None)


def padding_of(image: torch.Tensor) -> np.ndarray:
    """Return where an image is black in all channels: in noise, where it was padded."""
    black = -torch.tensor(MEAN_COLOR)[:, None, None]
    return torch.isclose(image, black.expand_as(image), rtol=1e-6).all(0).numpy()


@pytest.mark.parametrize("labelled_at", [None, FRAME, (32, 24)], ids=["own sizes", "same size", "smaller"])
def test_a_training_reads_labels_that_lie_on_the_pictures(
    trained: TrainedNetwork, target: Path, source: Path, tmp_path: Path, labelled_at: tuple[int, int] | None
) -> None:
    label(trained, target, tmp_path / "out", labelled_at, **KEEP_ALL)
    data = open_data(target, tmp_path / "out", source, FRAME)
    assert data.target is not None
    for position, (pseudo_label, (width, height)) in enumerate(zip(written(tmp_path / "out"), FITTED, strict=True)):
        sample = data.target[position]
        assert sample["labels"].shape == sample["pictures"].shape[:2] == FRAME[::-1]
        ignored = sample["labels"].numpy() == 255
        padding = padding_of(network_input(sample["pictures"][None])[0])
        assert not padding[:height, :width].any()
        assert padding.sum() == FRAME[0] * FRAME[1] - width * height
        if labelled_at == (32, 24):
            # A pixel of the smaller label is two of the picture, and fractions were cut.
            assert (ignored == padding).mean() > 1 - 2 / FRAME[0] - 2 / FRAME[1]
            np.testing.assert_array_equal(sample["labels"].numpy(), resize_label(pseudo_label, FRAME))
            continue
        np.testing.assert_array_equal(ignored, padding)
        content = sample["labels"].numpy()[:height, :width]
        whole = pseudo_label if labelled_at is None else pseudo_label[:height, :width]
        np.testing.assert_array_equal(content, resize_label(whole, (width, height)))


@pytest.mark.parametrize("size", [(64, 32), (48, 64), (65, 48)])
def test_a_training_at_another_aspect_ratio_than_that_of_the_pseudo_labels_is_refused(
    trained: TrainedNetwork, target: Path, source: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    label(trained, target, tmp_path / "out", FRAME)
    with pytest.raises(
        UserError,
        match=rf"out: its labels were padded to 64×48, the pictures are read at {size[0]}×{size[1]}; choose",
    ):
        open_data(target, tmp_path / "out", source, size)


def test_parts_of_pictures_at_sizes_of_their_own_are_refused_with_padded_pseudo_labels(
    trained: TrainedNetwork, target: Path, source: Path, tmp_path: Path
) -> None:
    label(trained, target, tmp_path / "out", FRAME)
    with pytest.raises(UserError, match=r"out: its labels were padded to 64×48, .*; give target\.size"):
        open_data(target, tmp_path / "out", source, None, crop=[16, 12])


def test_pseudo_labels_of_stretched_pictures_may_have_another_aspect_ratio(
    trained: TrainedNetwork, source: Path, tmp_path: Path
) -> None:
    target = drawn_shards(tmp_path / "target", 2, width=64, height=48).folder
    label(trained, target, tmp_path / "out", (64, 32))
    data = open_data(target, tmp_path / "out", source, (48, 48))
    assert data.target is not None
    assert data.target[0]["labels"].shape == (48, 48)
