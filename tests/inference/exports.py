"""Networks that are worth to be exported, and what they say of pictures."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esl_dist import config as settings
from esl_dist.config_files import from_dictionary
from esl_dist.models.batch_norm import batch_norms
from esl_dist.models.resizing import upsample
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.models.weights import initialise
from esl_dist.runs.checkpoints import build_network
from tests.builders import class_set, draw, input_of
from tests.training.small_runs import configuration, save_state

CPU = torch.device("cpu")
SIZE = (64, 48)
SHAPES = ((1, 48, 64), (3, 33, 50), (2, 97, 40))
TIMM = ("test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet", "test_vit", "test_vit3")


def asked(checkpoint: Path | str, output: Path, **changes: Any) -> settings.Export:
    values = {"checkpoint": str(checkpoint), "output": str(output), **changes}
    return from_dictionary(settings.Export, values, "tests")


def network_of(options: settings.Network) -> SegmentationNetwork:
    """Return a network that predicts several classes, whose statistics of source and target are others."""
    torch.manual_seed(0)
    network = build_network(options, class_set())
    initialise(network)
    for norm in batch_norms(network):
        for name, buffer in norm.named_buffers():
            if name != "num_batches_tracked":
                buffer.copy_(torch.rand_like(buffer) / 5 + ("var" in name))
    network.eval()
    biases = [one for name, one in network.named_parameters() if re.match(r"(layer6|head)\.conv2d_list\.0\.bias", name)]
    for bias in biases:
        with torch.no_grad():
            bias -= scores_of(network, pictures_of(SHAPES[1])).mean((0, 2, 3))
    return network


def save_network(run: Path, **options: Any) -> SegmentationNetwork:
    """Write a run of a network of per-domain statistics, trained at `SIZE`; returns the network."""
    values = {"architecture": "tiny", "batch_norm": "per_domain", **options}
    config = configuration(network=values, target={"path": "t", "size": list(SIZE)})
    network = network_of(config.network)
    run.mkdir(parents=True)
    save_state(run, 3, network.state_dict(), config, class_set())
    return network


def pictures_of(shape: tuple[int, int, int]) -> np.ndarray:
    return np.stack([draw(seed, shape[2], shape[1])[0][..., ::-1] for seed in range(shape[0])])


def scores_of(network: SegmentationNetwork, pictures: np.ndarray, domain: str = "target") -> torch.Tensor:
    """Return what a network says of red, green, blue, as training and evaluation give pictures to it."""
    images = torch.cat([input_of(np.ascontiguousarray(one[..., ::-1])) for one in pictures])
    with torch.inference_mode():
        return upsample(network(images, domain)["main"], images.shape[2:])
