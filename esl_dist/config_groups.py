"""Groups of settings that programs take: shards, network, method, optimiser, loader; as `esl_dist.config` describes."""

from dataclasses import dataclass, field
from typing import Annotated

from omegaconf import MISSING

from esl_dist.config_types import (
    LARGEST_FACTOR,
    LONGEST_SIDE,
    MOST_STEPS,
    Architecture,
    Betas,
    Folder,
    LocalPath,
    Margins,
    Multiplier,
    Rate,
    ScaleRange,
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
)


@dataclass
class Shards:
    """One packed data set split and the size at which a network sees it."""

    path: ShardFolder = MISSING
    """Folder of shards with an index.json, as written by esl-dist pack; a URL (http, https, s3) of one, too."""
    size: Size | None = None
    """Width and height in pixels to which pictures and labels are resized when read; null: as packed."""


@dataclass
class Validation(Shards):
    """The pictures of validations while training, with labels for mIoU or without any."""

    path: ShardFolder = ""
    """Folder or URL of their shards; empty: the target itself, without labels."""
    size: Size | None = None
    """Width and height in pixels at which they are seen; null: target.size, or source.size for pictures of the source
    or without a target; where that is null, too, as they are packed."""


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
    or torchvision's; for a backbone of timm with timm's, those that timm converts (such as DINOv2's own), or
    torchvision's of MobileNetV2; null: random ones."""
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
class Teacher:
    """The teacher of a self-training: the moving average of the network, and which of its labels are trusted."""

    momentum: ShareBelowOne = 0.999
    """Weight of the teacher in its average with the network after a step; in the first steps, the mean of all networks
    so far is taken."""
    trust: Annotated[str, one_of("share", "entropy")] = "share"
    """What the weight of its labels is taken from: `share` of a picture's pixels of which it is confident (DACS), or
    `entropy`: at most its class's median (ESL), over the pictures of the last steps."""
    confidence: Share = 0.968
    """For `share`: softmax score from which on it is confident."""
    entropy_as: Annotated[str, one_of("mask", "weight")] = "mask"
    """For `entropy`: what its trust is. `mask`: a trusted pixel weighs 1, another 0; `weight`: each weighs its
    picture's share of trusted ones."""
    entropy_floor: Share = 0.1
    """For `entropy`: least threshold of a class, as a share of the highest entropy."""
    entropy_memory: ShareBelowOne = 0.99
    """For `entropy`: what a step leaves of the counts before it; the medians are over some 1 / (1 - entropy_memory)
    steps."""
    margins: Margins = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    """[top, bottom, left, right] of a target picture in which no label is trusted, as shares of its height or width
    (Cityscapes: [0.03,0.25,0.03,0.03])."""


@dataclass
class Augmentation:
    """How a picture is changed before the network, unlike its teacher, sees it."""

    jitter: Share = 0.8
    """Probability of another brightness, contrast, saturation and hue."""
    jitter_strength: Annotated[float, limits(at_least=0, at_most=0.5)] = 0.2
    """Largest change of the first three, as a share, and of the hue, as a share of the circle of colours."""
    blur: Share = 0.5
    """Probability of a Gaussian blur, with a standard deviation of 0.15 to 1.15 pixels."""


@dataclass
class Masks:
    """For masked_consistency: the parts of a target picture that the network does not see."""

    ratio: ShareBelowOne = 0.7
    """Probability of a block to be hidden."""
    block: Annotated[int, limits(at_least=1, at_most=LONGEST_SIDE)] = 64
    """Side of a block in pixels of the network's input (published: 64 at 1024 pixels, 32 at 512)."""
    weight: Weight = 1.0
    """Weight of the loss, times the weights of `cross_entropy`."""


@dataclass
class Method:
    """The adaptation method and the weights of its losses."""

    name: str = "advent"
    """`advent`, `minent`, `source_only`, `self_training` or `masked_consistency`: what `esl_dist.adaptation.catalogue`
    lists."""
    discriminator_channels: Annotated[int, limits(at_least=1, at_most=1024)] = 64
    """Channels of a discriminator's first layer (published: 64)."""
    cross_entropy: LevelWeights = field(default_factory=lambda: LevelWeights(main=1.0, auxiliary=0.1))
    """Weights of the cross-entropy on source labels and pseudo-labels."""
    target: LevelWeights = field(default_factory=lambda: LevelWeights(main=1e-3, auxiliary=2e-4))
    """Weights of the method's loss on the unlabelled target."""
    host: Annotated[str, one_of("self_training", "advent", "minent")] = "self_training"
    """For masked_consistency: the method that it is added to."""
    mix: bool = True
    """For self_training: whether half of the classes of a source picture are laid over the target picture."""
    teacher: Teacher = field(default_factory=Teacher)
    augmentation: Augmentation = field(default_factory=Augmentation)
    masks: Masks = field(default_factory=Masks)


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
    """SGD or AdamW for the segmentation network, Adam for the discriminators, one polynomial schedule for both."""

    kind: Annotated[str, one_of("sgd", "adamw")] = "sgd"
    """The segmentation network's optimiser: `sgd`, as AdvEnt publishes it, or `adamw`, as DACS, DAFormer, MIC and
    VFM-UDA train."""
    learning_rate: Rate = 2.5e-4
    """Base learning rate of the segmentation network."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    betas: Betas = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of AdamW."""
    weight_decay: Weight = 5e-4
    """Weight decay of the segmentation network: SGD's of all parameters, AdamW's of all but norms, biases, position
    embeddings and tokens."""
    multipliers: RateMultipliers = field(default_factory=RateMultipliers)
    """Factors on the learning rate of the segmentation network's parts."""
    discriminator_learning_rate: Rate = 1e-4
    """Base learning rate of Adam."""
    discriminator_betas: Betas = field(default_factory=lambda: [0.9, 0.99])
    """Decay rates of Adam."""
    schedule_steps: Steps = 250_000
    """Steps over which the rate would fall to zero."""
    schedule_power: Annotated[float, limits(at_least=0, at_most=1000)] = 0.9
    """rate = base · (1 - step / schedule_steps) ** schedule_power."""
    warm_up_steps: StepsOrNone = 0
    """Steps at the beginning over which that rate is approached in equal parts, times (step + 1) / warm_up_steps; 0:
    none, as published; at most schedule_steps."""
    warm_up_from: Share | None = None
    """Share r of that rate with which the warm-up begins instead, times 1 - (1 - step / warm_up_steps) · (1 - r), as
    DAFormer (1e-6) and VFM-UDA (1e-3) have it; null: as warm_up_steps says."""


@dataclass
class Loader:
    """How samples are read. Only the window, and what `skip_corrupt` replaces, changes which sample comes when."""

    workers: Workers = 2
    """Reading processes a rank and domain; 0: read in the training process."""
    shuffle_window: Annotated[int, limits(at_least=4, at_most=MOST_STEPS)] = 1024
    """Samples among which the order is random; a quarter of it is read in sequence from the shards."""
    skip_corrupt: ShareBelowOne = 0.0
    """Largest share of a domain's samples, in one epoch or, with rare classes, ever, that may be corrupt, or lost with
    their shard, and are replaced by the sample after them; 0: the first one ends the training."""


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
