"""Groups of settings that programs take: shards, network, method, optimiser, loader; as `esl_dist.config` describes."""

from dataclasses import dataclass, field
from typing import Annotated

from omegaconf import MISSING

from esl_dist.config_types import (
    MOST_STEPS,
    Architecture,
    Folder,
    LocalPath,
    Multiplier,
    Rate,
    ShardFolder,
    Share,
    ShareBelowOne,
    Size,
    Steps,
    StepsOrNone,
    Stride,
    Weight,
    Workers,
)
from esl_dist.config_values import (
    limits,
    one_of,
    two_values,
)


@dataclass
class Shards:
    """One packed data set split and the size at which a network sees it."""

    path: ShardFolder = MISSING
    """Folder of shards with an index.json, as written by shards/prepare.py; a URL (http, https, s3) of one, too."""
    size: Size | None = None
    """Width and height in pixels to which pictures and labels are resized when read; null: as packed."""


@dataclass
class Network:
    """The segmentation network."""

    architecture: Architecture = "resnet101"
    """DeepLab-v2 on a residual network (`tiny` is for pictures of about 200 pixels), or `timm/<name>`: a backbone of
    timm, such as timm/mobilenetv2_100 or timm/vit_small_patch14_dinov2 (pip install 'esl-dist[timm]')."""
    head: Annotated[str, one_of("deeplab", "transposed")] | None = None
    """What scores the backbone's last stage: `deeplab`, its classifier, or `transposed`, a light decoder of two
    transposed convolutions; null: `transposed` for plain vision transformers, else `deeplab`."""
    output_stride: Stride | None = None
    """Pixels of the picture to one of the last stage: 8, 16 or 32; null: 8 for the residual networks, 16 for a backbone
    of timm that can be dilated, else its own."""
    auxiliary_head: bool = True
    """Whether stage 3, or a backbone's last but one, has a classifier and losses of its own (two levels); plain vision
    transformers have none."""
    batch_norm: Annotated[str, one_of("shared", "per_domain")] = "shared"
    """Running statistics of batch norm: `shared` by source and target passes, as published, or `per_domain`: each
    keeps its own, and evaluation, pseudo-labels and exported weights use the target's."""
    normalise_over: Annotated[str, one_of("batch", "picture")] = "batch"
    """What batch norm takes mean and variance of in training: the `batch`, over all processes, or each `picture` by
    itself, as in published trainings, which have one a step; running statistics are then the mean over the batch's."""
    start: LocalPath | None = None
    """Weights to start from: a run folder, a checkpoint folder, or a file (.safetensors, .pth) with the published names
    or torchvision's, for a backbone of timm with timm's, or torchvision's of MobileNetV2; null: random ones."""
    pretrained: bool = False
    """Whether a backbone of timm starts from the weights of timm's hub, which needs a network once."""
    start_without: Annotated[str, one_of("heads")] | None = None
    """What of `start` is left out: `heads`, the classifiers, for a network of other classes; null: nothing."""


@dataclass
class LevelWeights:
    """Weights of a loss at the two levels of the network."""

    main: Weight = MISSING
    """Weight at the main head (stage 4), no unit."""
    auxiliary: Weight = MISSING
    """Weight at the auxiliary head (stage 3), no unit."""


@dataclass
class Method:
    """The adaptation method and the weights of its losses."""

    name: str = "advent"
    """A name in the table of `esl_dist.adaptation.catalogue`."""
    discriminator_channels: Annotated[int, limits(at_least=1, at_most=1024)] = 64
    """Channels of a discriminator's first layer (published: 64)."""
    cross_entropy: LevelWeights = field(default_factory=lambda: LevelWeights(main=1.0, auxiliary=0.1))
    """Weights of the cross-entropy on source labels and pseudo-labels."""
    target: LevelWeights = field(default_factory=lambda: LevelWeights(main=1e-3, auxiliary=2e-4))
    """Weights of the method's loss on the unlabelled target."""


@dataclass
class RateMultipliers:
    """Factors on the learning rate of a part of the segmentation network, no unit.

    The published program steps a parameter as often as its list of parameters holds it: stem 1, bottleneck
    convolutions 3, shortcut convolutions 4 times.
    """

    stem: Multiplier = 1.0
    """The first convolution of a residual network."""
    blocks: Multiplier = 1.0
    """The convolutions inside residual blocks (published program: 3); of timm's networks, the whole backbone."""
    shortcuts: Multiplier = 1.0
    """The convolutions on a residual network's shortcuts (published program: 4)."""
    heads: Multiplier = 10.0
    """The classifiers, or the decoder."""


@dataclass
class Optimizer:
    """SGD for the segmentation network, Adam for the discriminators, one polynomial schedule for both."""

    learning_rate: Rate = 2.5e-4
    """Base learning rate of SGD."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay of SGD."""
    multipliers: RateMultipliers = field(default_factory=RateMultipliers)
    """Factors on the learning rate of SGD."""
    discriminator_learning_rate: Rate = 1e-4
    """Base learning rate of Adam."""
    discriminator_betas: Annotated[list[float], two_values(), limits(at_least=0, less_than=1)] = field(
        default_factory=lambda: [0.9, 0.99]
    )
    """Decay rates of Adam."""
    schedule_steps: Steps = 250_000
    """Steps over which the rate would fall to zero."""
    schedule_power: Annotated[float, limits(at_least=0, at_most=1000)] = 0.9
    """rate = base · (1 - step / schedule_steps) ** schedule_power."""
    warm_up_steps: StepsOrNone = 0
    """Steps at the beginning over which that rate is approached in equal parts, times (step + 1) / warm_up_steps; 0:
    none, as published; at most schedule_steps."""


@dataclass
class Loader:
    """How samples are read. Only the window, and what `skip_corrupt` replaces, changes which sample comes when."""

    workers: Workers = 2
    """Reading processes a rank and domain; 0: read in the training process."""
    shuffle_window: Annotated[int, limits(at_least=4, at_most=MOST_STEPS)] = 1024
    """Samples among which the order is random; a quarter of it is read in sequence from the shards."""
    skip_corrupt: ShareBelowOne = 0.0
    """Largest share of a domain's samples, in one epoch, that may be corrupt, or lost with their shard, and are
    replaced by the sample after them; 0: the first one ends the training."""


@dataclass
class Cache:
    """Where shards that come from a URL are kept on this machine, for all its processes and for the next start."""

    folder: Folder | None = None
    """Folder of the cache, on a local disk; null: esl-dist/shards in XDG_CACHE_HOME or, where that is not set, in
    ~/.cache."""
    gigabytes: Annotated[float, limits(more_than=0, at_most=1e6)] = 100.0
    """Largest size of the cache in units of 10⁹ bytes; shards that are needed last make room. Each has to fit in."""


@dataclass
class Checkpoints:
    """When to save, and what to keep."""

    every: Steps = 2000
    """Steps between two checkpoints; the last step, or that of SIGTERM, SIGUSR1 or Ctrl-C, leaves one too."""
    keep_newest: Steps = 2
    """Newest checkpoints that stay."""
    keep_every: StepsOrNone = 0
    """Checkpoints whose step is a multiple of this stay too; 0: none."""
