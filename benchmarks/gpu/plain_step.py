"""AdvEnt's published step, written out in the obvious manner with torch's own modules: what ours is measured against.

DeepLab-v2 with `nn.BatchNorm2d`, bilinear `F.interpolate` to the size of the labels, cross-entropy, softmax and
−p·log2 p / log2 C, two discriminators, SGD and Adam, one `backward()` a pass (Vu et al., CVPR 2019, and its program).
Two things are kinder to it than the published program: pixels without a label are left out by `ignore_index` and not
by boolean masks, and pictures lie on the device already. Tensors are NCHW in float32, with torch's defaults.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.step_counts import Workload
from esl_dist.models.deeplab import ARCHITECTURES, CLASSIFIER_DILATIONS

IGNORED = 255
AUXILIARY_WEIGHT, FOOLING_WEIGHTS = 0.1, (0.001, 0.0002)
"""Of the auxiliary level's cross-entropy; of the adversarial loss at the main and the auxiliary level."""


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return the layer with frozen scale and shift."""
    layer = nn.BatchNorm2d(channels)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    return layer


class Block(nn.Module):
    """A bottleneck, or a basic block of two 3×3 convolutions."""

    def __init__(self, inputs: int, channels: int, bottleneck: bool, stride: int, dilation: int) -> None:
        """Name its layers as published."""
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        kernel, padding = (1, 0) if bottleneck else (3, dilation)
        first_dilation = 1 if bottleneck else dilation
        self.conv1 = nn.Conv2d(inputs, channels, kernel, stride, padding, first_dilation, bias=False)
        self.bn1 = batch_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = batch_norm(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False) if bottleneck else None
        self.bn3 = batch_norm(outputs) if bottleneck else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), batch_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            out = self.bn3(self.conv3(self.relu(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(out + shortcut)
        return output


class Classifiers(nn.Module):
    """The sum of dilated convolutions."""

    def __init__(self, inputs: int, classes: int) -> None:
        """Build one convolution a dilation."""
        super().__init__()
        self.conv2d_list = nn.ModuleList(nn.Conv2d(inputs, classes, 3, 1, d, d) for d in CLASSIFIER_DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        out: Tensor = self.conv2d_list[0](x)
        for convolution in list(self.conv2d_list)[1:]:
            out = out + convolution(x)
        return out


class PlainDeepLab(nn.Module):
    """DeepLab-v2 with two levels, under the published names."""

    def __init__(self, architecture: str, classes: int) -> None:
        """Build the network of that name in `esl_dist.models.deeplab.ARCHITECTURES`."""
        super().__init__()
        shape = ARCHITECTURES[architecture]
        self.conv1 = nn.Conv2d(3, shape.channels, 7, 2, 3, bias=False)
        self.bn1 = batch_norm(shape.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        inputs, stages = shape.channels, []
        for stage, (blocks, stride, dilation) in enumerate(zip(shape.blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            layers = []
            for block in range(blocks):
                channels = shape.channels * 2**stage
                layers.append(Block(inputs, channels, shape.bottleneck, stride if block == 0 else 1, dilation))
                inputs = 4 * channels if shape.bottleneck else channels
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.layer5, self.layer6 = Classifiers(inputs // 2, classes), Classifiers(inputs, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the auxiliary and of the main level."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.layer5(x), self.layer6(self.layer4(x))


def discriminator(classes: int, channels: int) -> nn.Sequential:
    """Return five 4×4 convolutions of stride 2."""
    widths = (classes, channels, 2 * channels, 4 * channels, 8 * channels)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 2, 1))


def entropy_map(logits: Tensor) -> Tensor:
    """Return −p·log2 p / log2 C."""
    probabilities = F.softmax(logits, dim=1)
    return -probabilities * torch.log2(probabilities + 1e-30) / math.log2(logits.shape[1])


def domain_loss(output: Tensor, label: float) -> Tensor:
    """Return binary cross-entropy with logits against one label."""
    return F.binary_cross_entropy_with_logits(output, torch.full_like(output, label))


class PlainStep:
    """The step and what it trains; every call takes one."""

    def __init__(self, workload: Workload, rates: tuple[float, float] = (2.5e-4, 1e-4)) -> None:
        """Build networks and optimisers on the CPU; `rates` are those of the network and of the discriminators."""
        self.network = PlainDeepLab(workload.architecture, workload.classes).train()
        self.discriminators = nn.ModuleDict(
            {level: discriminator(workload.classes, workload.channels) for level in ("main", "auxiliary")}
        ).train()
        heads = {
            id(parameter) for head in (self.network.layer5, self.network.layer6) for parameter in head.parameters()
        }
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [one for one in trained if id(one) not in heads], "lr": rates[0]},
            {"params": [one for one in trained if id(one) in heads], "lr": 10 * rates[0]},
        ]
        self.sgd = torch.optim.SGD(groups, lr=rates[0], momentum=0.9, weight_decay=5e-4)
        self.adam = torch.optim.Adam(self.discriminators.parameters(), lr=rates[1], betas=(0.9, 0.99))

    def networks(self) -> nn.ModuleDict:
        """Return what it trains, under the project's names."""
        return nn.ModuleDict({"segmentation": self.network, "discriminators": self.discriminators})

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "PlainStep":
        """Move the networks."""
        self.networks().to(device, dtype)
        return self

    def __call__(self, source: Tensor, labels: Tensor, target: Tensor) -> None:
        """Take a step on normalised pictures (batch, 3, height, width) of both domains, and the source's labels."""
        self.sgd.zero_grad()
        self.adam.zero_grad()
        _train(self.discriminators.parameters(), False)
        of_source = self._predict(source, labels.shape[1:])
        loss = self._cross_entropy(of_source["main"], labels)
        (loss + AUXILIARY_WEIGHT * self._cross_entropy(of_source["auxiliary"], labels)).backward()  # type: ignore[no-untyped-call]
        of_target = self._predict(target, target.shape[2:])
        fooling = [
            weight * domain_loss(self.discriminators[level](entropy_map(of_target[level])), 0)
            for level, weight in zip(("main", "auxiliary"), FOOLING_WEIGHTS, strict=True)
        ]
        sum(fooling, torch.zeros((), device=target.device)).backward()  # type: ignore[no-untyped-call]
        _train(self.discriminators.parameters(), True)
        for label, logits in ((0, of_source), (1, of_target)):
            for level, one in self.discriminators.items():
                (domain_loss(one(entropy_map(logits[level].detach())), label) / 2).backward()  # type: ignore[no-untyped-call]
        self.sgd.step()
        self.adam.step()

    def _predict(self, images: Tensor, size: torch.Size) -> dict[str, Tensor]:
        auxiliary, main = self.network(images)
        return {
            level: F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
            for level, logits in (("main", main), ("auxiliary", auxiliary))
        }

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)


def _train(parameters: Iterable[nn.Parameter], trained: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trained)
