"""What a segmentation network is to all that trains it, or predicts with it.

A pass belongs to a domain, whose batch-norm statistics it takes and feeds; scores come at one level or two, at a
resolution of the network's own. Pictures come in one unit, whatever the network was trained on before: one that wants
another normalisation converts them inside.
"""

import torch
from torch import Tensor, nn

from esl_dist.config import Domain
from esl_dist.models.batch_norm import finish_pass, set_domain

Logits = dict[str, Tensor]
"""Level (`main`, `auxiliary`) → logits, (batch, classes, height, width), smaller than the picture."""


class SegmentationNetwork(nn.Module):
    """A network of one or two levels; kinds of it say how pictures are scored.

    Args:
        classes: number of classes.

    Attributes:
        heads: how the names of its classifiers begin.
        masked_color: float (3,), the colour of a pixel that says nothing, in the units of its input. No part of its
            state.
    """

    heads: tuple[str, ...] = ()
    masked_color: Tensor

    def __init__(self, classes: int) -> None:
        """Begin with a colour of zeros: that of pictures from which the mean is taken."""
        super().__init__()
        self.classes = classes
        self.register_buffer("masked_color", torch.zeros(3), persistent=False)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in the order of `forward`'s dictionary."""
        raise NotImplementedError

    def forward(self, images: Tensor, domain: Domain = "target") -> Logits:
        """Score pictures of one domain.

        Args:
            images: (batch, 3, height, width), as `esl_dist.data.loading.network_input` makes them.
            domain: whose batch-norm statistics are used in evaluation and fed in training.
        """
        set_domain(self, domain)
        logits = self.score(images)
        if self.training:
            finish_pass(self)
        return logits

    def score(self, images: Tensor) -> Logits:
        """Return the logits of `forward`; batch norm knows the domain."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by part, a name in `optimizer.multipliers`; each parameter once."""
        raise NotImplementedError

    def no_decay(self, name: str) -> bool:
        """Return whether a parameter of more than one dimension is one that AdamW does not draw to 0."""
        return False

    def refuse_size(self, size: tuple[int, int], pictures: int, name: str, setting: str) -> None:
        """Make sure that every layer has enough of pictures of a size, in training or evaluation, as the network is.

        Args:
            size: width and height.
            pictures: that go through it together, over all ranks.
            name: whose pictures, in front of the message.
            setting: which may change their size, or their number.

        Raises:
            UserError: some layer has not, or takes pictures of another size.
        """
        raise NotImplementedError

    def least_bytes_a_pixel(self) -> tuple[int, int]:
        """Return what a pass in training takes for a pixel of the picture and for one of the label, from below.

        Of the label: logarithmic probabilities in float32, which wait for the backward pass, in which there are as many
        bytes of gradients.
        """
        raise NotImplementedError

    def checkpoint_blocks(self) -> None:
        """Have blocks keep their input alone for the backward pass, which computes them again.

        Raises:
            UserError: the network cannot.
        """
        raise NotImplementedError


def checkpoint_blocks(networks: nn.Module) -> None:
    """Have every segmentation network in `networks` compute its blocks again in the backward pass."""
    for module in networks.modules():
        if isinstance(module, SegmentationNetwork):
            module.checkpoint_blocks()
