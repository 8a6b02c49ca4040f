"""Every setting of every program: one dataclass a program; below each field its meaning, with the unit.

This module only describes: a field's type carries its bounds, the text below it goes into `--help` and
docs/configuration.md, and `esl_dist.config_files` reads YAML and `key=value` against it. A recipe file holds what
differs from the defaults here, which are the published ones (AdvEnt, arXiv 1811.12833; ESL, arXiv 2006.08658) unless
the text of a setting says otherwise.
"""

from dataclasses import dataclass, field
from typing import Annotated

from omegaconf import MISSING

from esl_dist.config_groups import (
    Augmentation,
    Cache,
    Checkpoints,
    LevelWeights,
    Loader,
    Masks,
    Method,
    Network,
    Optimizer,
    RareClasses,
    RateMultipliers,
    Shards,
    Source,
    Teacher,
    TrainingShards,
    Validation,
)
from esl_dist.config_types import (
    A_YEAR,
    DOMAINS,
    LONGEST_SIDE,
    PRECISIONS,
    TENSORBOARD,
    Domain,
    Folder,
    LargestMegapixels,
    LocalPath,
    Precision,
    Samples,
    Seed,
    ShardFolder,
    ShownSamples,
    Size,
    Steps,
    StepsOrNone,
    Timeout,
    Trackers,
)
from esl_dist.config_use import Doctor, Evaluate, Export, Pictures, Predict, Prediction, PseudoLabel, Report
from esl_dist.config_values import limits, one_of

__all__ = [
    "A_YEAR",
    "DOMAINS",
    "LONGEST_SIDE",
    "PRECISIONS",
    "Augmentation",
    "Cache",
    "Checkpoints",
    "Demo",
    "Doctor",
    "Domain",
    "Evaluate",
    "Export",
    "LevelWeights",
    "Loader",
    "Masks",
    "Method",
    "Network",
    "Optimizer",
    "Pictures",
    "Predict",
    "Prediction",
    "Prepare",
    "PseudoLabel",
    "RareClasses",
    "RateMultipliers",
    "Report",
    "Shards",
    "Source",
    "Teacher",
    "Train",
    "TrainingShards",
]


@dataclass
class Train:
    """esl-dist train: adapt a segmentation network, or go on where an earlier start of the same run stopped."""

    name: str | None = None
    """Name of the run: <experiments>/snapshots/<name> and <experiments>/logs/<name>; null: made of data sets, number of
    classes, network, method and seed; a random seed is left out."""
    experiments: Folder = "experiments"
    """Folder of all runs."""
    seed: Seed | None = 0
    """Seed of initial weights and of the order of samples; null: a random one, noted in the run's config.yaml."""
    class_set: str | None = None
    """Name of a class set of the source shards; null: their first."""
    source: Source = field(default_factory=Source)
    """The labelled domain."""
    target: TrainingShards = field(default_factory=lambda: TrainingShards(path=""))
    """The unlabelled domain; its labels, if it has any, are not read. Source-only training needs none."""
    pseudo_labels: ShardFolder | None = None
    """Folder of pseudo-label shards of the target, or its URL; null: train without."""
    network: Network = field(default_factory=Network)
    method: Method = field(default_factory=Method)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: Samples = 1
    """Samples of each domain a step, over all processes and accumulated passes together."""
    accumulate: Samples = 1
    """Passes a step, each with an equal part of the batch."""
    precision: Precision | None = None
    """Precision of forward passes: `no` (float32), `bf16`, and on GPUs `tf32` (float32 whose convolutions round their
    factors to 10 bits) and `fp16`; null: what the launcher was asked for."""
    compile: bool = False
    """Whether the segmentation network's passes are compiled (torch.compile), once a start for each domain and size of
    pictures; gradients are then summed over processes after a backward pass, not during it. Not with DeepSpeed, nor
    with checkpoint_activations."""
    checkpoint_activations: bool = False
    """Whether residual blocks are computed again in the backward pass instead of kept in memory until then."""
    steps: Steps = 120_000
    """Steps to train; at most optimizer.schedule_steps."""
    log_every: Steps = 20
    """Steps between two entries of the curves and, where standard error is no terminal, two lines."""
    validation: Validation = field(default_factory=Validation)
    validate_every: StepsOrNone = 0
    """Steps between two validations; the last step is validated, too; 0: none. The best step's checkpoint stays."""
    pictures_every: StepsOrNone = 1000
    """Steps between two sets of pictures in TensorBoard, a row a sample: image, labels, prediction, entropy and
    pseudo-label; the last step has one, too; 0: none."""
    pictures_of: ShownSamples = 3
    """Samples of each domain, and of labelled validations, in these pictures: always the same ones, evenly over the
    shards."""
    trackers: Trackers = field(default_factory=lambda: [TENSORBOARD])
    """What shows curves: `tensorboard`, and others by their packages' names. scalars.csv is written in any case."""
    loader: Loader = field(default_factory=Loader)
    cache: Cache = field(default_factory=Cache)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    timeout_minutes: Timeout = 10.0
    """How long a process waits for others that do not get on before it names the lost one, and ends."""


@dataclass
class Prepare:
    """esl-dist pack: pack one split of a data set into WebDataset shards."""

    dataset: LocalPath = MISSING
    """Description of the data set: a YAML file, or the name of one in configs/datasets/, such as `cityscapes`."""
    root: Folder | None = None
    """Folder of the data set; null: the one its description names."""
    split: str = MISSING
    """A split named by the description."""
    output: Folder = MISSING
    """Folder for the shards."""
    size: Size | None = None
    """Width and height of packed pictures in pixels (bicubic, antialiased); null: as they are."""
    label_size: Size | None = None
    """Width and height of packed labels in pixels (nearest); null: as they are."""
    largest_megapixels: LargestMegapixels = 512
    """Most pixels of a picture or a label, before and after resizing, in units of 10⁶; a larger one is refused. A
    process takes up to 24 bytes for each."""
    image_format: Annotated[str, one_of("keep", "png", "jpg")] = "keep"
    """Encoding of packed pictures; `keep` copies a png or jpg file where nothing is resized or turned, and takes png
    elsewhere."""
    jpg_quality: Annotated[int, limits(at_least=1, at_most=100)] = 95
    """Quality of packed JPEG pictures, in percent."""
    shard_megabytes: Annotated[int, limits(at_least=1, at_most=10**6)] = 256
    """Largest size of a shard in units of 10⁶ bytes."""
    processes: Annotated[int, limits(at_least=1, at_most=1024)] | None = None
    """Packing processes; null: one a processor that the job may use. Fewer are started where memory is short."""
    repack: bool = False
    """Whether a folder that holds shards of other files or settings is packed anew; the old shards stay until the new
    ones are whole. false: it is refused, and what changed is told."""


@dataclass
class Demo:
    """esl-dist demo: the whole loop on Toytown, from drawing to one table."""

    seed: Seed = 0
    """Seed of the drawn scenes and of all trainings."""
    output: Folder | None = None
    """Folder of the demo; null: experiments/demo, with the seed where it is not 0."""
    recipes: Folder = "configs/demo"
    """Folder with the recipes source_only, advent, advent_esl and self_training."""
