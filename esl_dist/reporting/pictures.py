"""Predictions as pictures: the image, its classes in their colours, its entropy."""

import unicodedata
from collections.abc import Mapping

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

FONT, FONT_SCALE, TEXT_COLOR, BACKGROUND = cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 255
PANEL_WIDTH, LINE, SWATCH, MARGIN = 400, 24, 14, 6
"""Pixels: of a panel, whatever its picture's width; of a line of text, a class's square, and what lies between."""

IMAGE, GROUND_TRUTH, PSEUDO_LABEL = "image", "ground truth", "pseudo-label"
PREDICTION, ENTROPY = "prediction", "entropy"
"""Titles of panels, as the former."""

NO_CLASS = "none"
"""In the legend, what is no class, or is not trusted."""

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
def predicted_pictures(
    network: SegmentationNetwork, images: Tensor, domain: Domain, classes: ClassSet
) -> dict[str, Picture]:
    """Return the panels of prediction and entropy of the first of `images`, as the network predicts it.

    Args:
        network: in evaluation mode.
        images: (batch, 3, height, width), a network's input.
        domain: of the images.
        classes: the network's.
    """
    # Not called but for its pass itself: where those in training are compiled, this one of a picture is not worth it.
    logits = upsample(network.forward(images[:1], domain)["main"].float(), images.shape[2:])
    entropy = normalised_entropy(F.softmax(logits, dim=1))[0]
    return {PREDICTION: class_colors(logits[0].argmax(0), classes), ENTROPY: entropy_colors(entropy)}


def row(panels: Mapping[str, Picture], classes: ClassSet) -> Picture:
    """Lay out pictures of one scene side by side, each below its title, over a legend of the classes.

    Args:
        panels: title → picture; sizes may differ, all are shown at one, of `PANEL_WIDTH`.
        classes: named in the legend in their colours.
    """
    height, width = next(iter(panels.values())).shape[:2]
    # A column or a row of pixels is no scene; it is shown in a panel all the same.
    size = (PANEL_WIDTH, min(max(round(PANEL_WIDTH * height / width), 1), 4 * PANEL_WIDTH))
    columns = [np.vstack([_title(title), _scaled(picture, size, title)]) for title, picture in panels.items()]
    space = np.full((columns[0].shape[0], MARGIN, 3), BACKGROUND, np.uint8)
    spaced = [part for column in columns for part in (space, column)][1:]
    side_by_side = np.hstack(spaced)
    return np.vstack([side_by_side, legend(classes, side_by_side.shape[1])])


def legend(classes: ClassSet, width: int) -> Picture:
    """Return the names of classes beside their colours, in as many lines of a width as they need."""
    entries = [(item.name, item.color) for item in classes] + [(NO_CLASS, (0, 0, 0))]
    lines, left = [_blank(width)], MARGIN
    for name, color in entries:
        text = _drawable(name)
        needed = SWATCH + MARGIN + _text_width(text) + 3 * MARGIN
        if left > MARGIN and left + needed > width:
            lines.append(_blank(width))
            left = MARGIN
        top = (LINE - SWATCH) // 2
        lines[-1][top : top + SWATCH, left : left + SWATCH] = color
        _write(lines[-1], text, left + SWATCH + MARGIN)
        left += needed
    return np.vstack(lines)


def _title(text: str) -> Picture:
    line = _blank(PANEL_WIDTH)
    _write(line, _drawable(text), MARGIN // 2)
    return line


def _blank(width: int) -> Picture:
    return np.full((LINE, width, 3), BACKGROUND, np.uint8)


def _write(line: Picture, text: str, left: int) -> None:
    cv2.putText(line, text, (left, LINE - 8), FONT, FONT_SCALE, TEXT_COLOR, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, FONT, FONT_SCALE, 1)[0][0])


def _drawable(text: str) -> str:
    """Return what cv2's font has of a text: accents are left out, what it cannot write is a question mark."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return plain.encode("ascii", "replace").decode()


def _scaled(picture: Picture, size: tuple[int, int], title: str) -> Picture:
    """Return a picture at a width and height; the colours of classes are not mixed, for that would be another class."""
    is_smooth = title in (IMAGE, ENTROPY) and size[0] < picture.shape[1]
    kind = cv2.INTER_AREA if is_smooth else cv2.INTER_NEAREST_EXACT
    scaled: Picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=kind).astype(np.uint8)
    return scaled
