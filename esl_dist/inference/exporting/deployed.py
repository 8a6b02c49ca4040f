"""What an exported file computes: from a picture as decoders give it to the scores of its classes at each pixel.

Normalisation is inside. Left to whoever deploys the network, a swapped channel or another mean costs points and says
nothing; inside, it is tried with the rest, and a picture goes in as bytes, a quarter of its size as numbers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from esl_dist.config import Domain
from esl_dist.data.labels import ClassSet, class_set_to
from esl_dist.data.loading import MEAN_COLOR
from esl_dist.inference.exporting.files import FORMAT, FORMAT_VERSION
from esl_dist.models.resizing import upsample
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.runs.trained import TrainedNetwork

PICTURES, LOGITS = "pictures", "logits"
"""Names of the input and the output."""
BATCH, HEIGHT, WIDTH = "batch", "height", "width"
"""Names of sides that may be any."""

Sides = tuple[int | str, int | str, int | str]
"""Pictures at once, height and width in pixels; the name of one that may be any."""


class Deployed(nn.Module):
    """A network in evaluation mode with all that lies before and behind it.

    Args:
        network: of any kind; it is not changed but for its place and its gradients, of which it wants none.
        domain: whose batch-norm statistics it takes.
    """

    mean: Tensor

    def __init__(self, network: SegmentationNetwork, domain: Domain) -> None:
        """Put the mean of published pictures, from which networks see them, beside the network."""
        super().__init__()
        self.network = network
        self.domain = domain
        self.register_buffer("mean", torch.tensor(MEAN_COLOR)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map red, green and blue, uint8 (batch, height, width, 3), to logits, float32 (batch, classes, height, width).

        Bilinear with corners aligned between those that the network gives, as everywhere in the project.
        """
        images = pictures.permute(0, 3, 1, 2).flip(1).float() - self.mean
        return upsample(self.network(images, self.domain)["main"], pictures.shape[1:3])


def metadata(trained: TrainedNetwork, classes: ClassSet, deployed: Deployed, sides: Sides) -> dict[str, Any]:
    """Return what goes along with a file, as plain values: enough to use it with no more than the file.

    Args:
        trained: the network, and what is known of its training.
        classes: its classes, with the colours and raw ids that masks are to have.
        deployed: what the file computes.
        sides: of its input.
    """
    batch, height, width = sides
    is_fixed = isinstance(height, int)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": {
            "name": trained.name,
            "step": trained.step,
            "architecture": trained.architecture,
            "statistics": deployed.domain if trained.keeps == "per_domain" else trained.keeps,
        },
        "class_set": trained.class_set,
        "classes": class_set_to(classes),
        "size": [width, height] if is_fixed else trained.seen_at(deployed.domain),
        "input": {"name": PICTURES, "type": "uint8", "shape": [batch, height, width, 3], "channels": "RGB"},
        "output": {"name": LOGITS, "type": "float32", "shape": [batch, len(classes), height, width]},
        "normalisation": {"is_inside": True, **_normalisation(deployed)},
    }


def _normalisation(deployed: Deployed) -> dict[str, list[float]]:
    """Return what is taken from red, green and blue, in grey levels, and what they are divided by after that."""
    # A pixel of the mean says nothing to a network.
    mean = deployed.mean.flatten() + deployed.network.masked_color
    scale = getattr(deployed.network, "input_scale", torch.ones(3))
    deviation = (1 / scale).flatten().expand(3)
    return {"mean": _rounded(mean.flip(0)), "deviation": _rounded(deviation)}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
