"""Strong augmentation: the student sees colours changed and details blurred, and is to answer as if it did not.

As in DACS, DAFormer and MIC: with their probabilities, strengths and sizes of the blur's kernel. There one draw turns
it on for all pictures of a process's step; here every picture has draws of its own, as in VFM-UDA (arXiv 2406.09896),
from its own generator. Colours are changed by torchvision, on pictures in RGB in [0, 1].
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from esl_dist import config as settings
from esl_dist.data.loading import MEAN_COLOR

LEAST_BLUR, MOST_BLUR = 0.15, 1.15
"""Standard deviations in pixels."""

COLOUR_CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    vision.adjust_brightness,
    vision.adjust_contrast,
    vision.adjust_saturation,
    vision.adjust_hue,
)


def augmented(images: Tensor, generators: Sequence[torch.Generator], options: settings.Augmentation) -> Tensor:
    """Change pictures of a network's input, each by its own generator; a copy, in the same order in memory.

    Args:
        images: (batch, 3, height, width), BGR, grey levels minus `MEAN_COLOR`.
        generators: one a picture, on the CPU.
        options: probabilities and strength.
    """
    result = torch.empty_like(images)
    for own, image, generator in zip(result, images, generators, strict=True):
        own.copy_(_augmented(image, generator, options))
    return result


def _augmented(image: Tensor, generator: torch.Generator, options: settings.Augmentation) -> Tensor:
    (jitter, blur, deviation, *colours), order = _draw(generator)
    if jitter < options.jitter:
        changes = [options.jitter_strength * (2 * draw - 1) for draw in colours]
        image = jittered(image, changes, order)
    if blur < options.blur:
        image = blurred(image, LEAST_BLUR + (MOST_BLUR - LEAST_BLUR) * deviation)
    return image


def _draw(generator: torch.Generator) -> tuple[list[float], list[int]]:
    """Draw all numbers of a picture at once, whatever becomes of them, and an order of the changes of colour."""
    numbers: list[float] = torch.rand(3 + len(COLOUR_CHANGES), generator=generator, dtype=torch.float64).tolist()
    order: list[int] = torch.randperm(len(COLOUR_CHANGES), generator=generator).tolist()
    return numbers, order


def jittered(image: Tensor, changes: Sequence[float], order: Sequence[int]) -> Tensor:
    """Change brightness, contrast, saturation and hue of a picture, (3, height, width), one after the other.

    Args:
        image: BGR, grey levels minus `MEAN_COLOR`.
        changes: of each: the first three become factors 1 + change, the last a part of the circle of colours.
        order: in which they are made.
    """
    color = torch.stack([image[channel] + MEAN_COLOR[channel] for channel in (2, 1, 0)]).div_(255).clamp_(0, 1)
    values = [*(1 + change for change in changes[:3]), changes[3]]
    for number in order:
        color = COLOUR_CHANGES[number](color, values[number])
    return torch.stack([255 * color[2 - channel] - MEAN_COLOR[channel] for channel in range(3)])


def kernel_size(side: int) -> int:
    """Return the side of the blur's kernel, odd, for a side of the picture: some tenth of it (512: 51)."""
    tenth = math.ceil(0.1 * side)
    return math.floor(tenth - 0.5 + tenth % 2)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """Blur a picture, (3, height, width), by a Gaussian of a standard deviation in pixels, mirrored at the edges."""
    height, width = image.shape[1:]
    # Rows and columns one after the other: their product is the Gaussian of both, which would be far more work.
    for kernel in ([kernel_size(width), 1], [1, kernel_size(height)]):
        image = vision.gaussian_blur(image, kernel, [deviation, deviation])
    return image
