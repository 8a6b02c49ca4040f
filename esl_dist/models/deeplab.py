"""DeepLab-v2 on a residual network (Chen et al., arXiv 1606.00915), as AdvEnt publishes it; smaller ones of one family.

Module names are those of the published checkpoints (`layer4.2.conv3.weight`, `layer6.conv2d_list.0.weight`). What
differs from torchvision's ResNet: the stride of a bottleneck is on its first 1×1 convolution, stages 3 and 4 keep the
resolution and are dilated by 2 and 4 (output stride 8), the max-pool rounds up, batch norm is frozen but for its
statistics. Each classifier is the sum of four 3×3 convolutions, dilated by 6, 12, 18 and 24.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from esl_dist.errors import UserError
from esl_dist.models.batch_norm import DomainBatchNorm2d, unfed
from esl_dist.models.segmentation import Logits, SegmentationNetwork

CLASSIFIER_DILATIONS = (6, 12, 18, 24)

Norm = Callable[[int], DomainBatchNorm2d]
"""Number of channels → batch norm of so many."""


@dataclass(frozen=True)
class Architecture:
    """A residual network: blocks a stage, channels of the first stage, and whether blocks are bottlenecks."""

    blocks: tuple[int, int, int, int]
    channels: int
    bottleneck: bool


ARCHITECTURES = {
    "resnet152": Architecture((3, 8, 36, 3), 64, True),
    "resnet101": Architecture((3, 4, 23, 3), 64, True),
    "resnet50": Architecture((3, 4, 6, 3), 64, True),
    "resnet34": Architecture((3, 4, 6, 3), 64, False),
    "resnet18": Architecture((2, 2, 2, 2), 64, False),
    "tiny": Architecture((1, 1, 1, 1), 24, False),
}


def feature_size(side: int) -> int:
    """Return the pixels of a side of stages 3 and 4, and of the logits, for pictures with a side of `side` pixels."""
    return (side + 1) // 8 + 1


class ResidualBlock(nn.Module):
    """x ↦ relu(residual(x) + shortcut(x)): a bottleneck of three convolutions, or a basic block of two."""

    def __init__(self, inputs: int, channels: int, bottleneck: bool, stride: int, dilation: int, norm: Norm) -> None:
        """Build a block from `inputs` to `channels` (bottleneck: 4 · `channels`), `norm` after each convolution."""
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, channels, 1, stride, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, channels, 3, stride, dilation, dilation, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn1 = norm(channels)
        self.bn2 = norm(channels)
        if bottleneck:
            self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
            self.bn3 = norm(outputs)
        self.bottleneck = bottleneck
        self.is_checkpointed = False
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        if not (self.is_checkpointed and self.training and torch.is_grad_enabled()):
            return self._compute(input)
        contexts = partial(_first_and_repeated, self)
        output: Tensor = checkpoint(
            self._compute, input, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
        return output

    def _compute(self, input: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(input)))))
        if self.bottleneck:
            residual = self.bn3(self.conv3(F.relu(residual)))
        shortcut = input if self.downsample is None else self.downsample(input)
        return F.relu(residual + shortcut)


def _first_and_repeated(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what surrounds a block's pass, and its repetition in the backward pass."""
    return nullcontext(), unfed(block)


class Classifier(nn.Module):
    """Atrous spatial pyramid of DeepLab-v2: the sum of four dilated 3×3 convolutions."""

    def __init__(self, inputs: int, classes: int) -> None:
        """Build a classifier from `inputs` channels to `classes` logits."""
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(inputs, classes, 3, 1, dilation, dilation) for dilation in CLASSIFIER_DILATIONS
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to logits of the same height and width."""
        return torch.stack([convolution(features) for convolution in self.conv2d_list]).sum(0)


class DeepLab(SegmentationNetwork):
    """DeepLab-v2 with one or two levels.

    Args:
        architecture: a name in `ARCHITECTURES`.
        classes: number of classes.
        auxiliary_head: whether stage 3 has a classifier (`layer5`) too.
        per_domain: whether source and target passes keep batch-norm statistics of their own.
        per_picture: whether in training batch norm normalises each picture by itself, not by the global batch.
    """

    heads = ("layer5.", "layer6.")

    def __init__(
        self, architecture: str, classes: int, auxiliary_head: bool, per_domain: bool, per_picture: bool = False
    ) -> None:
        """Build the network with random weights (see `esl_dist.models.weights.initialise`)."""
        super().__init__(classes)
        shape = ARCHITECTURES[architecture]
        norm = partial(DomainBatchNorm2d, per_domain=per_domain, per_picture=per_picture)
        self.conv1 = nn.Conv2d(3, shape.channels, 7, 2, 3, bias=False)
        self.bn1 = norm(shape.channels)
        stages = []
        inputs = shape.channels
        for stage, (blocks, stride, dilation) in enumerate(zip(shape.blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            channels = shape.channels * 2**stage
            stages.append(nn.Sequential())
            for block in range(blocks):
                own_stride = stride if block == 0 else 1
                stages[-1].append(ResidualBlock(inputs, channels, shape.bottleneck, own_stride, dilation, norm))
                inputs = 4 * channels if shape.bottleneck else channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.layer5 = Classifier(inputs // 2, classes) if auxiliary_head else None
        self.layer6 = Classifier(inputs, classes)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in the order of `forward`'s dictionary."""
        return ("main",) if self.layer5 is None else ("main", "auxiliary")

    def score(self, images: Tensor) -> Logits:
        """Return logits, (batch, classes, ⌊(height + 1) / 8⌋ + 1, ⌊(width + 1) / 8⌋ + 1) at each level."""
        stem = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(F.max_pool2d(stem, 3, 2, 1, ceil_mode=True))))
        logits = {"main": self.layer6(self.layer4(features))}
        if self.layer5 is not None:
            logits["auxiliary"] = self.layer5(features)
        return logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by part: stem, blocks, shortcuts, heads; each parameter once."""
        groups: dict[str, list[nn.Parameter]] = {"stem": [], "blocks": [], "shortcuts": [], "heads": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[_part(name)].append(parameter)
        return groups

    def refuse_size(self, size: tuple[int, int], pictures: int, name: str, setting: str) -> None:
        """Make sure that batch norm in training has more than one value a channel to take a variance of."""
        values = feature_size(size[0]) * feature_size(size[1])
        if self.training and values * (1 if self.bn1.per_picture else pictures) == 1:
            least = next(side for side in count(1) if feature_size(side) > 1)
            raise UserError(
                f"{name}: a single picture of {size[0]}×{size[1]} pixels gives batch norm one value a channel; "
                f"expected at least {least} pixels on a side: give a larger {setting}"
            )

    def least_bytes_a_pixel(self) -> tuple[int, int]:
        """Return bytes of a picture's pixel and of a label's.

        Of the picture: the first convolution's output before and after ReLU, a quarter of the pixels, in half
        precision.
        """
        return 2 * 2 * self.conv1.out_channels // 4, 2 * 4 * self.classes * len(self.levels)

    def checkpoint_blocks(self) -> None:
        """Have every residual block keep its input alone."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.is_checkpointed = True


def _part(name: str) -> str:
    if name.startswith("conv1"):
        return "stem"
    if name.startswith(("layer5", "layer6")):
        return "heads"
    return "shortcuts" if "downsample" in name else "blocks"
