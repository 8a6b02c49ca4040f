"""Predictions as pictures: the image, its classes in their colours, its entropy."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from esl_dist.adaptation.losses import normalised_entropy
from esl_dist.config import Domain
from esl_dist.data.labels import RAW_IDS, ClassSet
from esl_dist.data.loading import MEAN_COLOR
from esl_dist.models.resizing import upsample
from esl_dist.models.segmentation import SegmentationNetwork

Picture = NDArray[np.uint8]
"""Red, green, blue: (height, width, 3)."""


def natural_colors(image: Tensor) -> Picture:
    """Turn a network's input, float32 (3, height, width), back into a picture."""
    levels = image.cpu() + torch.tensor(MEAN_COLOR)[:, None, None]
    return levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).flip(2).numpy()


def class_colors(labels: Tensor, classes: ClassSet) -> Picture:
    """Paint train ids (height, width) in the colours of their classes; what is no class is black."""
    palette = np.zeros((RAW_IDS, 3), np.uint8)
    palette[: len(classes)] = [item.color for item in classes]
    painted: Picture = palette[labels.cpu().numpy()]
    return painted


def entropy_colors(entropy: Tensor) -> Picture:
    """Paint entropies in [0, 1], (height, width), from dark blue (sure) to yellow (unsure)."""
    levels = (entropy.cpu() * 255).round().to(torch.uint8).numpy()
    return cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[:, :, ::-1].astype(np.uint8)


@torch.no_grad()
def prediction_pictures(
    network: SegmentationNetwork, images: Tensor, domain: Domain, classes: ClassSet
) -> dict[str, Picture]:
    """Return `image`, `prediction` and `entropy` of the first of `images`, as the network predicts it.

    Args:
        network: in evaluation mode.
        images: (batch, 3, height, width), a network's input.
        domain: of the images.
        classes: the network's.
    """
    # Not called but for its pass itself: where those in training are compiled, this one of a picture is not worth it.
    logits = upsample(network.forward(images[:1], domain)["main"].float(), images.shape[2:])
    entropy = normalised_entropy(F.softmax(logits, dim=1))[0]
    return {
        "image": natural_colors(images[0]),
        "prediction": class_colors(logits[0].argmax(0), classes),
        "entropy": entropy_colors(entropy),
    }
