"""The light decoder of a plain vision transformer, as VFM-UDA has it (arXiv 2406.09896): four times the resolution."""

from torch import Tensor, nn
from torch.nn import functional as F

CLASSIFIER_STD = 0.1
"""Standard deviation of the last convolution's random weights, as published."""

EPSILON = 1e-6
"""Of its layer norms: that of Segment Anything's, which they are."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of (batch, channels, height, width)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each place by its own mean and variance."""
        places = input.permute(0, 2, 3, 1)
        return F.layer_norm(places, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class TransposedDecoder(nn.Sequential):
    """Two transposed convolutions of 2×2, stride 2, to half the channels each; one of 3×3; scores of 1×1 without bias.

    Maps (batch, inputs, height, width) to (batch, classes, 4 · height, 4 · width).
    """

    def __init__(self, inputs: int, classes: int) -> None:
        """Build it with random weights; `inputs` are channels, 4 at least."""
        half, quarter = inputs // 2, inputs // 4
        scores = nn.Conv2d(quarter, classes, 1, bias=False)
        nn.init.normal_(scores.weight, std=CLASSIFIER_STD)
        super().__init__(
            nn.ConvTranspose2d(inputs, half, 2, 2),
            ChannelNorm(half, EPSILON),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
            ChannelNorm(quarter, EPSILON),
            nn.Conv2d(quarter, quarter, 3, padding=1),
            ChannelNorm(quarter, EPSILON),
            scores,
        )
