"""What a method is, to the training loop."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

TargetLoss = Callable[[Tensor, nn.Module | None, int], Tensor]
"""(target logits at label size, this level's discriminator, images in the global batch) → loss for the network."""

DiscriminatorLoss = Callable[[Tensor, Tensor, nn.Module, int], Tensor]
"""(detached source logits, detached target logits, discriminator, images in the global batch) → loss for it."""


@dataclass(frozen=True)
class Method:
    """The losses that a method adds to the cross-entropy on source labels (and pseudo-labels).

    Attributes:
        target_loss: what the segmentation network minimises on the unlabelled target; None: nothing.
        discriminator_loss: what a discriminator of each level minimises; None: there are no discriminators.
    """

    target_loss: TargetLoss | None = None
    discriminator_loss: DiscriminatorLoss | None = None
