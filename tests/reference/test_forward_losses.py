"""Networks and losses give the numbers of the published programs, to rounding."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from esl_dist.adaptation.losses import SOURCE, TARGET, cross_entropy, domain_loss, entropy_loss, self_information
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import network_input
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.discriminator import build_discriminator
from tests.reference.arrays import arrays, filled, needs_reference, relative_difference

pytestmark = [pytest.mark.reference, needs_reference]

TOLERANCE = 1e-9
CLASSES = 19


@pytest.mark.parametrize(("run", "auxiliary_head"), [("train_advent", True), ("train_advent_single_level", False)])
def test_the_network_has_the_published_names(run: str, auxiliary_head: bool) -> None:
    with torch.device("meta"):
        network = DeepLab("resnet101", CLASSES, auxiliary_head, False)
    # Counters of batches are not among the recorded tensors.
    names = sorted(name for name in network.state_dict() if not name.endswith("num_batches_tracked"))
    assert names == sorted(arrays(run)["final/names"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_network_gives_the_published_logits(mode: str) -> None:
    expected = arrays("forward")
    images = network_input(torch.from_numpy(expected["images"].transpose(0, 2, 3, 1))).double()
    network = filled(DeepLab("resnet101", CLASSES, True, False)).train(mode == "train")
    with torch.no_grad():
        logits = network(images)
    assert relative_difference(logits["main"].numpy(), expected[f"{mode}_main"]) < TOLERANCE
    assert relative_difference(logits["auxiliary"].numpy(), expected[f"{mode}_aux"]) < TOLERANCE


def test_the_discriminator_gives_the_published_output() -> None:
    expected = arrays("forward")
    discriminator = filled(build_discriminator(CLASSES))
    with torch.no_grad():
        output = discriminator(torch.from_numpy(expected["discriminator_input"]).double())
    assert relative_difference(output.numpy(), expected["discriminator_output"]) < TOLERANCE


def test_the_losses_are_the_published_ones() -> None:
    expected = arrays("losses")
    logits = torch.from_numpy(expected["logits"]).double()
    labels = torch.from_numpy(expected["labels"])
    # The published loss counts labels below 200; here every other label has become the one that is not counted.
    valid = labels < 200
    known = torch.where(valid, labels, IGNORE_INDEX)
    images, log_probabilities = len(logits), F.log_softmax(logits, dim=1)
    actual = {
        "cross_entropy": cross_entropy(log_probabilities, known, valid.sum()),
        "self_information": self_information(log_probabilities),
        "entropy_loss": entropy_loss(log_probabilities, images),
    }
    for name, values in actual.items():
        assert relative_difference(values.numpy(), expected[name]) < TOLERANCE, name


def test_the_domain_loss_is_the_published_one() -> None:
    expected = arrays("losses")
    logits = torch.from_numpy(expected["logits"][:, :1])
    for name, domain in (("bce_source", SOURCE), ("bce_target", TARGET)):
        # These two were computed in float32: their mean is a sum of rounded values.
        accuracy = 4 * np.finfo(np.float32).eps if expected[name].dtype == np.float32 else TOLERANCE
        loss = domain_loss(logits.double(), domain, len(logits))
        assert relative_difference(loss.numpy(), expected[name].reshape(())) < accuracy, name
