"""Every setting of every program: one dataclass a program, each field with its meaning, unit and default.

This module only describes; `esl_dist.config_files` reads YAML and `key=value` against it. A recipe file holds what
differs from the defaults here, which are the published ones (AdvEnt, arXiv 1811.12833; ESL, arXiv 2006.08658) unless
the text of a setting says otherwise.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def setting(default: Any, meaning: str, **bounds: Any) -> Any:
    """Describe one setting.

    Args:
        default: its default; `MISSING` if the user has to give one; a type or function is called to make one.
        meaning: one sentence with the unit.
        bounds: what `config_values.problem_of_bounds` holds it to: `choices`, `minimum`, `above`, `maximum`, `below`
            for a value or each of a list; `length` and `product` for a list; `folder` where a file cannot be meant.
    """
    metadata = {"meaning": meaning, **bounds}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


# Every number has an upper bound, so that a slip of the keyboard is told at once and neither fills the memory nor
# overflows in a step. Each is chosen a hundred times or more beyond what published trainings use and what one machine
# has, and such that what is computed from several of them (rate · multiplier in float32, steps · batch in int64,
# ten times the timeout) still fits its type. Whether a value in bounds fits the machine is seen when it is used.
MOST_STEPS = 10**9
MOST_SAMPLES = 2**16
"""Of a batch, and passes that share it."""
MOST_WORKERS = 256
MOST_PROCESSES = 1024
MOST_CHANNELS = 1024
LONGEST_SIDE = 2**15
MOST_PIXELS = 2**28
"""Of a picture: 16384 × 16384."""
LARGEST_RATE = 1e30
LARGEST_FACTOR = 1e6
LONGEST_MINUTES = 525_600.0
"""A year."""

PRECISIONS = ("no", "bf16", "fp16")

A_SIZE = {"minimum": 1, "maximum": LONGEST_SIDE, "length": 2, "product": MOST_PIXELS}
"""Bounds of width and height in pixels."""


@dataclass
class Shards:
    """One packed data set split and the size at which a network sees it."""

    path: str = setting(MISSING, "Folder of shards with an index.json, as written by shards/prepare.py.", folder=True)
    size: list[int] | None = setting(
        None,
        "Width and height in pixels to which pictures and labels are resized when read; null: as packed.",
        **A_SIZE,
    )


@dataclass
class Network:
    """The segmentation network."""

    architecture: str = setting(
        "resnet101",
        "DeepLab-v2 on a residual network; `tiny` is for pictures of about 200 pixels.",
        choices=("resnet152", "resnet101", "resnet50", "resnet34", "resnet18", "tiny"),
    )
    auxiliary_head: bool = setting(True, "Whether stage 3 has a classifier and losses of its own (two levels).")
    batch_norm: str = setting(
        "shared",
        "Running statistics of batch norm: `shared` by source and target passes, as published, or `per_domain`: each "
        "keeps its own, and evaluation, pseudo-labels and exported weights use the target's.",
        choices=("shared", "per_domain"),
    )
    start: str | None = setting(
        None,
        "Weights to start from: a run folder, a checkpoint folder, or a file (.safetensors, .pth) with the published "
        "names or torchvision's; null: random ones.",
    )
    start_without: str | None = setting(
        None,
        "What of `start` is left out: `heads`, the classifiers, for a network of other classes; null: nothing.",
        choices=("heads",),
    )


@dataclass
class LevelWeights:
    """Weights of a loss at the two levels of the network."""

    main: float = setting(MISSING, "Weight at the main head (stage 4), no unit.", minimum=0, maximum=LARGEST_FACTOR)
    auxiliary: float = setting(
        MISSING, "Weight at the auxiliary head (stage 3), no unit.", minimum=0, maximum=LARGEST_FACTOR
    )


@dataclass
class Method:
    """The adaptation method and the weights of its losses."""

    name: str = setting("advent", "A name in the table of `esl_dist.adaptation.methods`.")
    discriminator_channels: int = setting(
        64, "Channels of a discriminator's first layer (published: 64).", minimum=1, maximum=MOST_CHANNELS
    )
    cross_entropy: LevelWeights = setting(
        lambda: LevelWeights(main=1.0, auxiliary=0.1),
        "Weights of the cross-entropy on source labels and pseudo-labels.",
    )
    target: LevelWeights = setting(
        lambda: LevelWeights(main=1e-3, auxiliary=2e-4), "Weights of the method's loss on the unlabelled target."
    )


@dataclass
class RateMultipliers:
    """Factors on the learning rate of a part of the segmentation network, no unit.

    The published program steps a parameter as often as its list of parameters holds it: stem 1, bottleneck
    convolutions 3, shortcut convolutions 4 times.
    """

    stem: float = setting(1.0, "The first convolution.", above=0, maximum=LARGEST_FACTOR)
    blocks: float = setting(
        1.0, "The convolutions inside residual blocks (published program: 3).", above=0, maximum=LARGEST_FACTOR
    )
    shortcuts: float = setting(
        1.0, "The convolutions on the shortcuts (published program: 4).", above=0, maximum=LARGEST_FACTOR
    )
    heads: float = setting(10.0, "The classifiers.", above=0, maximum=LARGEST_FACTOR)


@dataclass
class Optimizer:
    """SGD for the segmentation network, Adam for the discriminators, one polynomial schedule for both."""

    learning_rate: float = setting(2.5e-4, "Base learning rate of SGD.", above=0, maximum=LARGEST_RATE)
    momentum: float = setting(0.9, "Momentum of SGD.", minimum=0, maximum=1)
    weight_decay: float = setting(5e-4, "Weight decay of SGD.", minimum=0, maximum=LARGEST_FACTOR)
    multipliers: RateMultipliers = setting(RateMultipliers, "Factors on the learning rate of SGD.")
    discriminator_learning_rate: float = setting(1e-4, "Base learning rate of Adam.", above=0, maximum=LARGEST_RATE)
    discriminator_betas: list[float] = setting(
        lambda: [0.9, 0.99], "Decay rates of Adam.", minimum=0, below=1, length=2
    )
    schedule_steps: int = setting(
        250_000, "Steps over which the rate would fall to zero.", minimum=1, maximum=MOST_STEPS
    )
    schedule_power: float = setting(
        0.9, "rate = base · (1 - step / schedule_steps) ** schedule_power.", minimum=0, maximum=1000
    )


@dataclass
class Loader:
    """How samples are read. Only the window, and what `skip_corrupt` replaces, changes which sample comes when."""

    workers: int = setting(
        2, "Reading processes a rank and domain; 0: read in the training process.", minimum=0, maximum=MOST_WORKERS
    )
    shuffle_window: int = setting(
        1024,
        "Samples among which the order is random; a quarter of it is read in sequence from the shards.",
        minimum=4,
        maximum=MOST_STEPS,
    )
    skip_corrupt: float = setting(
        0.0,
        "Largest share of a domain's samples, in one epoch, that may be corrupt, or lost with their shard, and are "
        "replaced by the sample after them; 0: the first one ends the training.",
        minimum=0,
        below=1,
    )


TIMEOUT_MINUTES = 10.0
TIMEOUT_MEANING = "How long a process waits for others that do not get on before it names the lost one, and ends."


@dataclass
class Checkpoints:
    """When to save, and what to keep."""

    every: int = setting(
        2000,
        "Steps between two checkpoints; the last step, or that of SIGTERM, SIGUSR1 or Ctrl-C, leaves one too.",
        minimum=1,
        maximum=MOST_STEPS,
    )
    keep_newest: int = setting(2, "Newest checkpoints that stay.", minimum=1, maximum=MOST_STEPS)
    keep_every: int = setting(
        0, "Checkpoints whose step is a multiple of this stay too; 0: none.", minimum=0, maximum=MOST_STEPS
    )


@dataclass
class Train:
    """launch/train.py: adapt a segmentation network, or go on where an earlier start of the same run stopped."""

    name: str | None = setting(
        None,
        "Name of the run: <experiments>/snapshots/<name> and <experiments>/logs/<name>; null: made of data sets, "
        "number of classes, network and method.",
    )
    experiments: str = setting("experiments", "Folder of all runs.", folder=True)
    seed: int | None = setting(
        0,
        "Seed of initial weights and of the order of samples; null: a random one, noted in the run's config.yaml.",
        minimum=0,
        maximum=2**32 - 1,
    )
    class_set: str | None = setting(None, "Name of a class set of the source shards; null: their first.")
    source: Shards = setting(Shards, "The labelled domain.")
    target: Shards = setting(
        lambda: Shards(path=""),
        "The unlabelled domain; its labels, if it has any, are not read. Source-only training needs none.",
    )
    pseudo_labels: str | None = setting(
        None, "Folder of pseudo-label shards of the target; null: train without.", folder=True
    )
    network: Network = setting(Network, "The segmentation network.")
    method: Method = setting(Method, "The adaptation method.")
    optimizer: Optimizer = setting(Optimizer, "Optimisers and schedule.")
    batch_size: int = setting(
        1,
        "Samples of each domain a step, over all processes and accumulated passes together.",
        minimum=1,
        maximum=MOST_SAMPLES,
    )
    accumulate: int = setting(
        1, "Passes a step, each with an equal part of the batch.", minimum=1, maximum=MOST_SAMPLES
    )
    precision: str | None = setting(
        None,
        "Precision of forward passes: `no` (float32), `bf16`, `fp16` (on GPUs); null: what the launcher was asked for.",
        choices=PRECISIONS,
    )
    steps: int = setting(120_000, "Steps to train; at most optimizer.schedule_steps.", minimum=1, maximum=MOST_STEPS)
    log_every: int = setting(
        20,
        "Steps between two entries in TensorBoard and, where standard error is no terminal, two lines.",
        minimum=1,
        maximum=MOST_STEPS,
    )
    pictures_every: int = setting(
        1000,
        "Steps between two sets of pictures in TensorBoard: image, prediction and entropy of both domains; 0: none.",
        minimum=0,
        maximum=MOST_STEPS,
    )
    loader: Loader = setting(Loader, "How samples are read.")
    checkpoints: Checkpoints = setting(Checkpoints, "When to save, and what to keep.")
    timeout_minutes: float = setting(TIMEOUT_MINUTES, TIMEOUT_MEANING, above=0, maximum=LONGEST_MINUTES)


@dataclass
class Pictures(Shards):
    """One packed data set split and the size at which a trained network sees it."""

    size: list[int] | None = setting(
        None,
        "Width and height in pixels to which pictures are resized when read; null: those of the network's training "
        "(its target.size, or source.size for pictures of its source), as packed where it had none or is not known.",
        **A_SIZE,
    )


CLASS_SET_MEANING = (
    "Class set of a file of weights that does not say its own; null: the first of the shards, or of `classes_from`, "
    "with as many classes."
)
CLASSES_FROM_MEANING = (
    "Data set's description (YAML) or folder of labelled shards that names the classes of such a file{more}; null: the "
    "shards do."
)
AS_PACKED_MEANING = "Whether pictures are seen at the size at which they are packed, whatever that of the training."
DOMAIN_MEANING = (
    "Whose size of pictures and, where there are statistics per domain, whose batch-norm statistics the network takes: "
    "`source` or `target`; null: the source's for shards of the run's source data set, else the target's."
)
PRECISION_MEANING = (
    "Precision of forward passes: `no` (float32), `bf16`, or `fp16` on GPUs; null: what the launcher was asked for, "
    "else that of the training where the device has it."
)


@dataclass
class PseudoLabel:
    """launch/pseudo_label.py: label the target where the network may be trusted."""

    checkpoint: str = setting(
        MISSING,
        "Run folder (its newest whole checkpoint), checkpoint folder, or a file of weights (.safetensors, .pth) with "
        "the published names.",
    )
    class_set: str | None = setting(None, CLASS_SET_MEANING)
    classes_from: str | None = setting(None, CLASSES_FROM_MEANING.format(more=""))
    target: Pictures = setting(Pictures, "The pictures to label, and the size at which the network sees them.")
    as_packed: bool = setting(False, AS_PACKED_MEANING)
    domain: str | None = setting(None, DOMAIN_MEANING, choices=("source", "target"))
    precision: str | None = setting(None, PRECISION_MEANING, choices=PRECISIONS)
    output: str = setting(MISSING, "Folder for the pseudo-label shards.", folder=True)
    label_size: list[int] | None = setting(
        None, "Width and height of the pseudo-labels in pixels; null: that of the network's input.", **A_SIZE
    )
    score: str = setting(
        "entropy",
        "What decides trust: `entropy` (ESL) or `confidence` (highest softmax score, the paper's baseline).",
        choices=("entropy", "confidence"),
    )
    entropy_floor: float = setting(
        0.1, "Least entropy threshold of a class, as a share of the highest entropy.", minimum=0, maximum=1
    )
    confidence_ceiling: float = setting(0.9, "Highest confidence threshold of a class.", minimum=0, maximum=1)
    compare_with_labels: bool = setting(
        False, "Whether the target's own labels are read, only to report the accuracy of the pseudo-labels."
    )
    workers: int = setting(2, "Reading processes a rank.", minimum=0, maximum=MOST_WORKERS)
    timeout_minutes: float = setting(TIMEOUT_MINUTES, TIMEOUT_MEANING, above=0, maximum=LONGEST_MINUTES)


@dataclass
class Evaluate:
    """launch/evaluate.py: score a network, an ensemble, or all snapshots of a run on labelled shards."""

    mode: str = setting(
        "single",
        "`single`: one network; `ensemble`: the weighted sum of several networks' logits; `best`: every checkpoint of "
        "a run, those that are scored already excepted.",
        choices=("single", "ensemble", "best"),
    )
    checkpoint: str | None = setting(
        None,
        "For `single`: run folder (its newest whole checkpoint), checkpoint folder, or a file of weights "
        "(.safetensors, .pth) with the published names; for `best`: run folder.",
    )
    checkpoints: list[str] = setting(list, "For `ensemble`: its networks, each given as `checkpoint` is.")
    ensemble_weights: list[float] = setting(
        list,
        "For `ensemble`: factor on each network's logits, no unit; empty: 1 for each.",
        minimum=0,
        maximum=LARGEST_FACTOR,
    )
    class_set: str | None = setting(None, CLASS_SET_MEANING)
    classes_from: str | None = setting(
        None, CLASSES_FROM_MEANING.format(more=", and the colours and raw ids of `predictions`")
    )
    data: Pictures = setting(
        Pictures, "The labelled pictures, scored at their labels' own size; for predictions alone, unlabelled ones."
    )
    as_packed: bool = setting(False, AS_PACKED_MEANING)
    domain: str | None = setting(None, DOMAIN_MEANING, choices=("source", "target"))
    precision: str | None = setting(None, PRECISION_MEANING, choices=PRECISIONS)
    output: str | None = setting(
        None,
        "JSON file for the scores; null: none, but for `best`, whose scores are kept in <run>/scores/<data "
        "set>_<split>.json.",
    )
    experiments: str = setting(
        "experiments",
        "Folder of all runs; in its logs/ are the curves of ensembles and files of weights, those of a run are beside "
        "it.",
        folder=True,
    )
    predictions: str | None = setting(
        None,
        "Folder for the predictions as PNG files, <key>.png, at the size of the label or, without labels, of the "
        "picture; null: none.",
        folder=True,
    )
    prediction_format: str = setting(
        "colors",
        "What predictions hold: `colors` of the classes, `train_ids`, or `raw_ids`: of each class the first that its "
        "data set lists, 8 bits or, where an id needs them, 16.",
        choices=("colors", "train_ids", "raw_ids"),
    )
    wait_minutes: float = setting(
        0.0,
        "For `best`: how long to wait for each snapshot that a running training has yet to write.",
        minimum=0,
        maximum=LONGEST_MINUTES,
    )
    statistics_from: str | None = setting(
        None,
        "Folder of shards on which the batch-norm statistics are estimated anew before scoring; null: those of the "
        "checkpoint.",
        folder=True,
    )
    workers: int = setting(2, "Reading processes a rank.", minimum=0, maximum=MOST_WORKERS)
    timeout_minutes: float = setting(TIMEOUT_MINUTES, TIMEOUT_MEANING, above=0, maximum=LONGEST_MINUTES)


@dataclass
class Prepare:
    """shards/prepare.py: pack one split of a data set into WebDataset shards."""

    dataset: str = setting(MISSING, "YAML file that describes the data set (configs/datasets/).")
    root: str | None = setting(None, "Folder of the data set; null: the one its description names.", folder=True)
    split: str = setting(MISSING, "A split named by the description.")
    output: str = setting(MISSING, "Folder for the shards.", folder=True)
    size: list[int] | None = setting(
        None, "Width and height of packed pictures in pixels (bicubic, antialiased); null: as they are.", **A_SIZE
    )
    label_size: list[int] | None = setting(
        None, "Width and height of packed labels in pixels (nearest); null: as they are.", **A_SIZE
    )
    largest_megapixels: int = setting(
        512,
        "Most pixels of a picture or a label, before and after resizing, in units of 10⁶; a larger one is refused. A "
        "process takes up to 24 bytes for each.",
        minimum=1,
        maximum=1073,
    )
    image_format: str = setting(
        "keep",
        "Encoding of packed pictures; `keep` copies a png or jpg file where nothing is resized or turned, and takes "
        "png elsewhere.",
        choices=("keep", "png", "jpg"),
    )
    jpg_quality: int = setting(95, "Quality of packed JPEG pictures, in percent.", minimum=1, maximum=100)
    shard_megabytes: int = setting(256, "Largest size of a shard in units of 10⁶ bytes.", minimum=1, maximum=10**6)
    processes: int | None = setting(
        None,
        "Packing processes; null: one a processor that the job may use. Fewer are started where memory is short.",
        minimum=1,
        maximum=MOST_PROCESSES,
    )
    repack: bool = setting(
        False,
        "Whether a folder that holds shards of other files or settings is packed anew; the old shards stay until the "
        "new ones are whole. false: it is refused, and what changed is told.",
    )


@dataclass
class Demo:
    """launch/demo.py: the whole loop on Toytown, from drawing to one table."""

    seed: int = setting(0, "Seed of the drawn scenes and of the three trainings.", minimum=0, maximum=2**32 - 1)
    output: str | None = setting(
        None, "Folder of the demo; null: experiments/demo, with the seed where it is not 0.", folder=True
    )
    recipes: str = setting("configs/demo", "Folder with the recipes source_only, advent and advent_esl.", folder=True)
