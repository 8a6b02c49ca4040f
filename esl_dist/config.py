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
)
from esl_dist.config_types import (
    A_YEAR,
    DOMAINS,
    LARGEST_FACTOR,
    LONGEST_SIDE,
    PRECISIONS,
    Domain,
    DomainChoice,
    Folder,
    LocalPath,
    Precision,
    Samples,
    Seed,
    ShardFolder,
    Share,
    Size,
    Steps,
    StepsOrNone,
    Timeout,
    Workers,
)
from esl_dist.config_values import (
    FAR,
    LOCAL,
    limits,
    one_of,
)

__all__ = [
    "A_YEAR",
    "DOMAINS",
    "LONGEST_SIDE",
    "PRECISIONS",
    "Augmentation",
    "Cache",
    "Checkpoints",
    "Demo",
    "Domain",
    "Evaluate",
    "LevelWeights",
    "Loader",
    "Masks",
    "Method",
    "Network",
    "Optimizer",
    "Pictures",
    "Prediction",
    "Prepare",
    "PseudoLabel",
    "RareClasses",
    "RateMultipliers",
    "Shards",
    "Source",
    "Teacher",
    "Train",
    "TrainingShards",
]


@dataclass
class Train:
    """launch/train.py: adapt a segmentation network, or go on where an earlier start of the same run stopped."""

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
    """Steps between two entries in TensorBoard and, where standard error is no terminal, two lines."""
    validation: Shards = field(default_factory=lambda: Shards(path=""))
    """The pictures of validations, with labels for mIoU or without any; no path: the target itself, without labels;
    size null: that at which the training sees such pictures."""
    validate_every: StepsOrNone = 0
    """Steps between two validations; the last step is validated, too; 0: none. The best step's checkpoint stays."""
    pictures_every: StepsOrNone = 1000
    """Steps between two sets of pictures in TensorBoard: image, prediction and entropy of both domains; 0: none."""
    loader: Loader = field(default_factory=Loader)
    cache: Cache = field(default_factory=Cache)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    timeout_minutes: Timeout = 10.0
    """How long a process waits for others that do not get on before it names the lost one, and ends."""


@dataclass
class Pictures(Shards):
    """One packed data set split and the size at which a trained network sees it."""

    size: Size | None = None
    """Width and height in pixels to which pictures are resized when read; null: those of the network's training (its
    target.size, or source.size for pictures of its source), as packed where it had none or is not known."""


@dataclass
class Prediction:
    """What every program that uses a trained network asks for: which network, and how it sees the pictures."""

    checkpoint: LocalPath | None = None
    """Run folder (its newest whole checkpoint), checkpoint folder, or a file of weights (.safetensors, .pth) with the
    published names."""
    class_set: str | None = None
    """Class set of a file of weights that does not say its own; null: the first of the shards, or of `classes_from`,
    with as many classes."""
    classes_from: Annotated[str, FAR] | None = None
    """Data set's description (YAML) or folder of labelled shards, or its URL, that names the classes of such a file;
    null: the shards do."""
    as_packed: bool = False
    """Whether pictures are seen at the size at which they are packed, whatever that of the training."""
    domain: DomainChoice | None = None
    """Whose size of pictures and, where there are statistics per domain, whose batch-norm statistics the network takes:
    `source` or `target`; null: the source's for shards of the run's source data set, else the target's."""
    precision: Precision | None = None
    """Precision of forward passes: `no` (float32), `bf16`, and on GPUs `tf32` (float32 whose convolutions round their
    factors to 10 bits) and `fp16`; null: what the launcher was asked for, else that of the training where the device
    has it."""
    workers: Workers = 2
    """Reading processes a rank."""
    cache: Cache = field(default_factory=Cache)
    timeout_minutes: Timeout = 10.0
    """How long a process waits for others that do not get on before it names the lost one, and ends."""


@dataclass
class PseudoLabel(Prediction):
    """launch/pseudo_label.py: label the target where the network may be trusted."""

    checkpoint: LocalPath = MISSING
    target: Pictures = field(default_factory=Pictures)
    """The pictures to label, and the size at which the network sees them."""
    output: Folder = MISSING
    """Folder for the pseudo-label shards."""
    label_size: Size | None = None
    """Width and height of the pseudo-labels in pixels; null: that of the network's input."""
    score: Annotated[str, one_of("entropy", "confidence")] = "entropy"
    """What decides trust: `entropy` (ESL) or `confidence` (highest softmax score, the paper's baseline)."""
    entropy_floor: Share = 0.1
    """Least entropy threshold of a class, as a share of the highest entropy."""
    confidence_ceiling: Share = 0.9
    """Highest confidence threshold of a class."""
    compare_with_labels: bool = False
    """Whether the target's own labels are read, only to report the accuracy of the pseudo-labels."""


@dataclass
class Evaluate(Prediction):
    """launch/evaluate.py: score a network, an ensemble, or all snapshots of a run on labelled shards."""

    checkpoint: LocalPath | None = None
    """For `single`: run folder (its newest whole checkpoint), checkpoint folder, or a file of weights (.safetensors,
    .pth) with the published names; for `best`: run folder."""
    classes_from: Annotated[str, FAR] | None = None
    """Data set's description (YAML) or folder of labelled shards, or its URL, that names the classes of such a file,
    and the colours and raw ids of `predictions`; null: the shards do."""
    mode: Annotated[str, one_of("single", "ensemble", "best")] = "single"
    """`single`: one network; `ensemble`: the weighted sum of several networks' logits; `best`: every checkpoint of a
    run, those that are scored already excepted."""
    checkpoints: Annotated[list[str], LOCAL] = field(default_factory=list)
    """For `ensemble`: its networks, each given as `checkpoint` is."""
    ensemble_weights: Annotated[list[float], limits(at_least=0, at_most=LARGEST_FACTOR)] = field(default_factory=list)
    """For `ensemble`: factor on each network's logits, no unit; empty: 1 for each."""
    data: Pictures = field(default_factory=Pictures)
    """The labelled pictures, scored at their labels' own size; for predictions alone, unlabelled ones."""
    output: LocalPath | None = None
    """JSON file for the scores; null: none, but for `best`, whose scores are kept in <run>/scores/<data
    set>_<split>.json."""
    experiments: Folder = "experiments"
    """Folder of all runs; in its logs/ are the curves of ensembles and files of weights, those of a run are beside
    it."""
    predictions: Folder | None = None
    """Folder for the predictions as PNG files, <key>.png, at the size of the label or, without labels, of the picture;
    null: none."""
    prediction_format: Annotated[str, one_of("colors", "train_ids", "raw_ids")] = "colors"
    """What predictions hold: `colors` of the classes, `train_ids`, or `raw_ids`: of each class the first that its data
    set lists, 8 bits or, where an id needs them, 16."""
    wait_minutes: Annotated[float, limits(at_least=0, at_most=A_YEAR)] = 0.0
    """For `best`: how long to wait for each snapshot that a running training has yet to write."""
    statistics_from: ShardFolder | None = None
    """Folder of shards, or its URL, on which the batch-norm statistics are estimated anew before scoring; null: those
    of the checkpoint."""


@dataclass
class Prepare:
    """shards/prepare.py: pack one split of a data set into WebDataset shards."""

    dataset: LocalPath = MISSING
    """YAML file that describes the data set (configs/datasets/)."""
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
    largest_megapixels: Annotated[int, limits(at_least=1, at_most=1073)] = 512
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
    """launch/demo.py: the whole loop on Toytown, from drawing to one table."""

    seed: Seed = 0
    """Seed of the drawn scenes and of all trainings."""
    output: Folder | None = None
    """Folder of the demo; null: experiments/demo, with the seed where it is not 0."""
    recipes: Folder = "configs/demo"
    """Folder with the recipes source_only, advent, advent_esl and self_training."""
