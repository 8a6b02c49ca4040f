"""An ensemble predicts the argmax of the weighted sum of its networks' upsampled logits."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from esl_dist.data.images import encode_png
from esl_dist.data.loading import LabelSource, Samples
from esl_dist.data.workers import Workers
from esl_dist.models.deeplab import DeepLab
from esl_dist.prediction import predictions
from esl_dist.prediction.predictor import Predictor
from tests.builders import class_set, draw, input_of, write_shards
from tests.inference.trained import trained_network
from tests.training.small_runs import tiny_network

CLASSES = len(class_set())
NUMBER = 4
SIZE, LABEL_SIZE = (48, 40), (57, 31)
CLEAR = 1e-3
"""Logits of 32 bits may be nearer to each other than they are exact; a pixel is clear where they are further apart."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Return noise whose labels have another size than the networks' input, and pixels that do not count."""
    pictures = []
    for seed in range(NUMBER):
        members = {"image.png": encode_png(draw(seed, *SIZE)[0]), "label.png": encode_png(draw(seed, *LABEL_SIZE)[1])}
        pictures.append((f"scene_{seed}", members))
    shards = write_shards(tmp_path_factory.mktemp("shards"), pictures)
    return Samples(shards, None, LabelSource(shards, class_set()))


@pytest.fixture(scope="module")
def networks() -> list[DeepLab]:
    """Return networks each of which predicts every class: no class's logits are higher on the whole."""
    drawn = [tiny_network(seed) for seed in range(3)]
    with torch.no_grad():
        for network in drawn:
            means = network(input_of(draw(0, *SIZE)[0]))["main"].mean((0, 2, 3))
            next(network.layer6.conv2d_list.children()).bias.sub_(means)
    return drawn


def upsampled_logits(network: DeepLab, seed: int) -> np.ndarray:
    """Return the main head's logits at the label's size: bilinear with aligned corners, one axis after the other."""
    with torch.no_grad():
        logits = network(input_of(draw(seed, *SIZE)[0]))["main"][0].double().numpy()
    for axis, length in ((1, LABEL_SIZE[1]), (2, LABEL_SIZE[0])):
        places = np.linspace(0, logits.shape[axis] - 1, length)
        known = np.arange(logits.shape[axis])
        logits = np.apply_along_axis(
            lambda row, places=places, known=known: np.interp(places, known, row), axis, logits
        )
    return logits


def member(network: DeepLab, weight: float) -> Predictor:
    return Predictor(trained_network(network), weight=weight)


def predictions_of(members: Sequence[Predictor], samples: Samples) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the prediction of each sample in turn, and the confusion matrix."""
    found = [predict() for predict in predictions.predictions(members, samples, Workers(0, 1))]
    assert [one.position for one in found] == list(range(NUMBER))
    confusion = sum(one.confusion for one in found)
    assert isinstance(confusion, torch.Tensor)
    return [one.labels.numpy() for one in found], confusion.numpy()


def agree_where_clear(prediction: np.ndarray, scores: np.ndarray) -> bool:
    highest = np.sort(scores, axis=0)
    clear = highest[-1] - highest[-2] > CLEAR
    assert clear.mean() > 0.95
    return bool((prediction == scores.argmax(0))[clear].all())


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def test_a_single_network_predicts_the_highest_of_its_upsampled_logits(
    networks: list[DeepLab], samples: Samples
) -> None:
    predictions, _ = predictions_of([member(networks[0], 1.0)], samples)
    for seed, prediction in enumerate(predictions):
        assert prediction.shape == LABEL_SIZE[::-1]
        assert agree_where_clear(prediction, upsampled_logits(networks[0], seed))
    assert len(np.unique(np.stack(predictions))) == CLASSES, "these networks know more than one class"


def test_an_ensemble_predicts_the_highest_of_the_weighted_sum_of_logits(
    networks: list[DeepLab], samples: Samples
) -> None:
    weights = (0.5, 2.0, 1.25)
    members = [member(network, weight) for network, weight in zip(networks, weights, strict=True)]
    predictions, _ = predictions_of(members, samples)
    others: dict[str, list[bool]] = {"equal weights": [], "mean of probabilities": [], "one network": []}
    for seed, prediction in enumerate(predictions):
        logits = [upsampled_logits(network, seed) for network in networks]
        assert agree_where_clear(prediction, sum(weight * one for weight, one in zip(weights, logits, strict=True)))
        probabilities = sum(weight * softmax(one) for weight, one in zip(weights, logits, strict=True))
        others["equal weights"].append(agree_where_clear(prediction, sum(logits)))
        others["mean of probabilities"].append(bool((prediction == probabilities.argmax(0)).mean() > 0.99))
        others["one network"].append(agree_where_clear(prediction, logits[1]))
    assert not any(all(agreed) for agreed in others.values()), "these inputs tell other formulas from the right one"


def test_the_confusion_counts_each_sample_s_predictions_under_its_label(
    networks: list[DeepLab], samples: Samples
) -> None:
    predictions, confusion = predictions_of([member(networks[0], 1.0), member(networks[1], 1.0)], samples)
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for position, prediction in enumerate(predictions):
        label = samples.label(position)
        counted = label != 255
        assert not counted.all()
        np.add.at(expected, (label[counted], prediction[counted]), 1)
    np.testing.assert_array_equal(confusion, expected)


@pytest.mark.parametrize("alone", [0, 1])
def test_a_network_of_weight_0_changes_nothing(networks: list[DeepLab], samples: Samples, alone: int) -> None:
    weights = [1.0 if number == alone else 0.0 for number in range(2)]
    members = [member(network, weight) for network, weight in zip(networks[:2], weights, strict=True)]
    single = predictions_of([member(networks[alone], 1.0)], samples)
    both = predictions_of(members, samples)
    np.testing.assert_array_equal(both[1], single[1])
    np.testing.assert_array_equal(np.stack(both[0]), np.stack(single[0]))
    other = predictions_of([member(networks[1 - alone], 1.0)], samples)
    assert not np.array_equal(other[1], single[1])


@pytest.mark.parametrize("factor", [2.0**-20, 0.25, 16.0])
def test_weights_need_not_add_up_to_1(networks: list[DeepLab], samples: Samples, factor: float) -> None:
    """Powers of two: they change no digit of a sum, so that the predictions are the same to the pixel."""
    shares = (0.75, 0.25)
    plain = predictions_of(
        [member(network, share) for network, share in zip(networks[:2], shares, strict=True)], samples
    )
    scaled = [member(network, factor * share) for network, share in zip(networks[:2], shares, strict=True)]
    np.testing.assert_array_equal(predictions_of(scaled, samples)[1], plain[1])


def test_the_order_of_two_networks_does_not_matter(networks: list[DeepLab], samples: Samples) -> None:
    members = [member(networks[0], 1.5), member(networks[1], 1.0)]
    np.testing.assert_array_equal(
        predictions_of(members, samples)[1], predictions_of(list(reversed(members)), samples)[1]
    )
