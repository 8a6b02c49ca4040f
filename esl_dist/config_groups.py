"""Groups of settings that programs take: shards, network, method, optimiser, loader; as `esl_dist.config` describes."""

from dataclasses import dataclass, field
from typing import Annotated

from omegaconf import MISSING

from esl_dist.config_types import (
    LARGEST_FACTOR,
    MOST_STEPS,
    Folder,
    LocalPath,
    Multiplier,
    Rate,
    ScaleRange,
    ShardFolder,
    Share,
    ShareBelowOne,
    Size,
    Steps,
    StepsOrNone,
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
class TrainingShards(Shards):
    """One packed data set split and what of its pictures a network sees in training.

    What is drawn is a function of seed, domain, step and place in the global batch: the same for any number of
    processes, and after any stop.
    """

    scale: ScaleRange = field(default_factory=lambda: [1.0, 1.0])
    """Least and greatest factor on the size, drawn evenly for each sample."""
    crop: Size | None = None
    """Width and height in pixels of a part at a random place of the resized picture; null: the whole picture. What of a
    part lies beyond a smaller picture is black, and not labelled."""
    mirror: bool = False
    """Whether every second picture, in the mean, is seen as its mirror image."""


@dataclass
class RareClasses:
    """Rare-class sampling (DAFormer): a class is drawn, rare ones more often, then a picture that shows it."""

    temperature: Annotated[float, limits(at_least=1e-6, at_most=LARGEST_FACTOR)] | None = None
    """T of the probability exp((1 - f) / T) of a class with a share f of all labelled pixels, before normalisation
    (published: 0.01); null: no class is drawn, every picture comes once an epoch."""
    least_pixels: Annotated[int, limits(at_least=0, at_most=2**30)] = 3000
    """A picture shows a class if more pixels than this have it, at the size at which its label is packed; lower it for
    small pictures."""
    least_in_crop: Annotated[int, limits(at_least=0, at_most=2**30)] = 1500
    """Another part is tried if no more pixels than this have the class, at most 10 times (published: 1500 of
    512×512)."""


@dataclass
class Source(TrainingShards):
    """The labelled data set split, what of its pictures a network sees, and how often which comes."""

    largest_class_share: Annotated[float, limits(more_than=0, at_most=1)] = 1.0
    """Another part is tried if one class has this share, or more, of its labelled pixels, at most 10 times (published:
    0.75); 1: any will do."""
    rare_classes: RareClasses = field(default_factory=RareClasses)


@dataclass
class Network:
    """The segmentation network."""

    architecture: Annotated[str, one_of("resnet152", "resnet101", "resnet50", "resnet34", "resnet18", "tiny")] = (
        "resnet101"
    )
    """DeepLab-v2 on a residual network; `tiny` is for pictures of about 200 pixels."""
    auxiliary_head: bool = True
    """Whether stage 3 has a classifier and losses of its own (two levels)."""
    batch_norm: Annotated[str, one_of("shared", "per_domain")] = "shared"
    """Running statistics of batch norm: `shared` by source and target passes, as published, or `per_domain`: each
    keeps its own, and evaluation, pseudo-labels and exported weights use the target's."""
    normalise_over: Annotated[str, one_of("batch", "picture")] = "batch"
    """What batch norm takes mean and variance of in training: the `batch`, over all processes, or each `picture` by
    itself, as in published trainings, which have one a step; running statistics are then the mean over the batch's."""
    start: LocalPath | None = None
    """Weights to start from: a run folder, a checkpoint folder, or a file (.safetensors, .pth) with the published names
    or torchvision's; null: random ones."""
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
    """The first convolution."""
    blocks: Multiplier = 1.0
    """The convolutions inside residual blocks (published program: 3)."""
    shortcuts: Multiplier = 1.0
    """The convolutions on the shortcuts (published program: 4)."""
    heads: Multiplier = 10.0
    """The classifiers."""


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
