"""AdvEnt's published step, written out in the obvious manner with torch's own modules: what ours is measured against.

DeepLab-v2 with `nn.BatchNorm2d`, bilinear `F.interpolate` to the size of the labels, cross-entropy, softmax and
−p·log2 p / log2 C, two discriminators, SGD and Adam, one `backward()` a pass of the network and a loss of the
discriminators (Vu et al., CVPR 2019, and its program). Two things are kinder to it than the published program: pixels
without a label are left out by `ignore_index` and not by boolean masks, and pictures lie on the device already. It
imports nothing of the project, so that a start of it is a plain one.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPES = {
    "resnet101": ((3, 4, 23, 3), 64, True),
    "resnet50": ((3, 4, 6, 3), 64, True),
    "resnet18": ((2, 2, 2, 2), 64, False),
    "tiny": ((1, 1, 1, 1), 24, False),
}
"""Name → blocks of each stage, channels of the first, whether blocks are bottlenecks."""

IGNORED = 255
AUXILIARY_WEIGHT, FOOLING_WEIGHTS = 0.1, {"main": 0.001, "auxiliary": 0.0002}
"""Of the auxiliary level's cross-entropy; of the adversarial loss at each level."""

Logits = dict[str, Tensor]
"""Level → logits."""


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return the layer with frozen scale and shift."""
    layer = nn.BatchNorm2d(channels)
    _train(layer.parameters(), False)
    return layer


class Block(nn.Module):
    """A bottleneck, or a basic block of two 3×3 convolutions."""

    def __init__(self, inputs: int, channels: int, bottleneck: bool, stride: int, dilation: int) -> None:
        """Name its layers as published."""
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        kernel, padding, first_dilation = (1, 0, 1) if bottleneck else (3, dilation, dilation)
        self.conv1 = nn.Conv2d(inputs, channels, kernel, stride, padding, first_dilation, bias=False)
        self.bn1 = batch_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = batch_norm(channels)
        if bottleneck:
            self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
            self.bn3 = batch_norm(outputs)
        self.bottleneck = bottleneck
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), batch_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            out = self.bn3(self.conv3(self.relu(out)))
        out = out + (x if self.downsample is None else self.downsample(x))
        output: Tensor = self.relu(out)
        return output


class Classifier(nn.Module):
    """The sum of dilated convolutions."""

    def __init__(self, inputs: int, classes: int) -> None:
        """Build one convolution a dilation."""
        super().__init__()
        self.conv2d_list = nn.ModuleList(nn.Conv2d(inputs, classes, 3, 1, d, d) for d in (6, 12, 18, 24))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        out: Tensor = self.conv2d_list[0](x)
        for convolution in list(self.conv2d_list)[1:]:
            out = out + convolution(x)
        return out


class PlainDeepLab(nn.Module):
    """DeepLab-v2 with two levels, under the published names."""

    def __init__(self, architecture: str, classes: int) -> None:
        """Build the network of that name in `SHAPES`."""
        super().__init__()
        blocks, channels, bottleneck = SHAPES[architecture]
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = batch_norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        inputs = channels
        stages = []
        for stage, (number, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            layers = []
            for block in range(number):
                width = channels * 2**stage
                layers.append(Block(inputs, width, bottleneck, stride if block == 0 else 1, dilation))
                inputs = 4 * width if bottleneck else width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.layer5, self.layer6 = Classifier(inputs // 2, classes), Classifier(inputs, classes)

    def forward(self, x: Tensor) -> Logits:
        """Return logits of the auxiliary and of the main level."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return {"main": self.layer6(self.layer4(x)), "auxiliary": self.layer5(x)}


def discriminators(classes: int, channels: int) -> nn.ModuleDict:
    """Return one of both levels."""
    return nn.ModuleDict({level: discriminator(classes, channels) for level in FOOLING_WEIGHTS})


def sgd(network: PlainDeepLab, rate: float) -> torch.optim.Optimizer:
    """Return the published optimiser of the network: ten times the rate for classifiers."""
    heads = [*network.layer5.parameters(), *network.layer6.parameters()]
    others = {id(parameter) for parameter in heads}
    rest = [one for one in network.parameters() if one.requires_grad and id(one) not in others]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": heads, "lr": 10 * rate}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=5e-4)


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
    """The published step and what it trains; every call takes one."""

    def __init__(
        self, networks: nn.ModuleDict, optimizers: Sequence[torch.optim.Optimizer], half: bool = False
    ) -> None:
        """Take the networks, "segmentation" and "discriminators"; with `half`, passes are in bfloat16."""
        self.networks, self.optimizers, self.half = networks, optimizers, half

    def __call__(self, source: Tensor, labels: Tensor, target: Tensor) -> None:
        """Take a step on normalised pictures (batch, 3, height, width), and the source's labels."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        autocast = partial(torch.autocast, source.device.type, torch.bfloat16, enabled=self.half)
        discriminators = self.networks["discriminators"]
        _train(discriminators.parameters(), False)
        with autocast():
            of_source = self._predict(source, labels.shape[1:])
            loss = self._cross_entropy(of_source["main"], labels)
            loss = loss + AUXILIARY_WEIGHT * self._cross_entropy(of_source["auxiliary"], labels)
        loss.backward()  # type: ignore[no-untyped-call]
        with autocast():
            of_target = self._predict(target, target.shape[2:])
            fooling = [FOOLING_WEIGHTS[level] * self._domain_loss(level, of_target[level], 0) for level in of_target]
        torch.stack(fooling).sum().backward()  # type: ignore[no-untyped-call]
        _train(discriminators.parameters(), True)
        for label, logits in ((0, of_source), (1, of_target)):
            for level in logits:
                with autocast():
                    loss = self._domain_loss(level, logits[level].detach(), label) / 2
                loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()

    def _predict(self, images: Tensor, size: torch.Size) -> Logits:
        return {
            level: F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
            for level, logits in self.networks["segmentation"](images).items()
        }

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)

    def _domain_loss(self, level: str, logits: Tensor, label: float) -> Tensor:
        return domain_loss(self.networks["discriminators"].get_submodule(level)(entropy_map(logits)), label)


def build(architecture: str, classes: int, channels: int, half: bool = False) -> PlainStep:
    """Return the step with new networks, discriminators of so many channels, and the published optimisers."""
    network, of_levels = PlainDeepLab(architecture, classes), discriminators(classes, channels)
    adam = torch.optim.Adam(of_levels.parameters(), lr=1e-4, betas=(0.9, 0.99))
    networks = nn.ModuleDict({"segmentation": network, "discriminators": of_levels})
    return PlainStep(networks.train(), [sgd(network, 2.5e-4), adam], half)


def _train(parameters: Iterable[nn.Parameter], trained: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trained)
