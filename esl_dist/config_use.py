"""The settings of programs that use trained networks, or what they left; `esl_dist.config` says how they are read."""

from dataclasses import dataclass, field
from typing import Annotated

from omegaconf import MISSING

from esl_dist.config_groups import Cache, Shards
from esl_dist.config_types import (
    A_YEAR,
    LARGEST_FACTOR,
    DomainChoice,
    Folder,
    LargestMegapixels,
    LocalPath,
    Precision,
    Samples,
    ShardFolder,
    Share,
    Size,
    Timeout,
    Workers,
)
from esl_dist.config_values import FAR, LOCAL, Bound, limits, one_of

PREDICTION_KINDS = ("train_ids", "raw_ids", "colors", "overlay", "entropy", "confidence")
"""What can be made of a picture of one's own."""
AT_LEAST_ONE = Bound("at least one", lambda values: len(values) > 0, is_of_list=True)


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
    """Data set's description (YAML, or its name, such as `cityscapes`) or folder of labelled shards, or its URL, that
    names the classes of such a file; null: the shards do."""
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
    """esl-dist pseudo-label: label the target where the network may be trusted."""

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
    count_both_scores: bool = False
    """Whether the score that does not decide is counted, too, so that a report can tell what it would keep; two bytes a
    pixel more lie on the disk until the job is finished, and thresholds take more time."""


@dataclass
class Evaluate(Prediction):
    """esl-dist evaluate: score a network, an ensemble, or all snapshots of a run on labelled shards."""

    checkpoint: LocalPath | None = None
    """For `single`: run folder (its newest whole checkpoint), checkpoint folder, or a file of weights (.safetensors,
    .pth) with the published names; for `best`: run folder."""
    classes_from: Annotated[str, FAR] | None = None
    """Data set's description (YAML, or its name, such as `cityscapes`) or folder of labelled shards, or its URL, that
    names the classes of such a file, and the colours and raw ids of `predictions`; null: the shards do."""
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
class Predict(Prediction):
    """esl-dist predict: label pictures of one's own by a trained network."""

    checkpoint: LocalPath = MISSING
    class_set: str | None = None
    """Class set of a file of weights that does not say its own; null: the first of `classes_from` with as many
    classes."""
    classes_from: Annotated[str, FAR] | None = None
    """Data set's description (YAML, or its name, such as `cityscapes`) or folder of labelled shards, or its URL, that
    names the classes of a file of weights, and their colours and raw ids; null: what the network's training knew."""
    pictures: LocalPath = MISSING
    """Folder (with what lies below it), pattern in quotes ("frames/*.png"), list (.txt, a path a line, relative to the
    list's folder), picture, or video."""
    output: Folder = MISSING
    """Folder for what is made of them: <output>/<kind>/<name>.png for each kind in `save`, and predictions.json; a
    frame of a video is named by its number, 000000 the first."""
    save: Annotated[list[str], one_of(*PREDICTION_KINDS), AT_LEAST_ONE] = field(
        default_factory=lambda: ["train_ids", "overlay"]
    )
    """What is made: `train_ids` or `raw_ids` in the classes' colours (PNG with a palette; of each class the first raw
    id, 16 bits and grey where one needs them), `colors`, `overlay` (picture and colours, half each), `entropy` (grey,
    0: sure, 255: all classes alike), `confidence` (grey, 255: a highest softmax score of 1)."""
    size: Size | None = None
    """Width and height in pixels at which the network sees pictures; null: those of its training (its target.size, or
    source.size for domain=source, or that at which they were packed), their own where that is not known."""
    as_packed: bool = False
    """Whether pictures are seen at their own size, whatever that of the training."""
    domain: DomainChoice | None = None
    """Whose size of pictures and, where there are statistics per domain, whose batch-norm statistics the network takes:
    `source` or `target`; null: the target's."""
    keep_aspect_ratio: bool = False
    """Whether a picture of another aspect ratio than `size` is padded with black, as those of data sets that say so
    (Mapillary) are in training; false: it is stretched, as published."""
    window: Size | None = None
    """Width and height in pixels of a window that slides over the picture as it is seen; the logits of windows that
    overlap are averaged; null: the whole picture at once."""
    overlap: Annotated[float, limits(at_least=0, at_most=0.9)] = 0.25
    """Least share of a window's width and height that the next one covers, too."""
    mirror: bool = False
    """Whether the logits of each picture, or window, are averaged with those of its mirror image; takes twice as
    long."""
    largest_megapixels: LargestMegapixels = 512
    """Most pixels of a picture, in units of 10⁶; a larger one is refused."""


@dataclass
class Export:
    """esl-dist export: write a trained network as one file that runs without this project."""

    checkpoint: LocalPath = MISSING
    """Run folder (its newest whole checkpoint), checkpoint folder, or a file of weights (.safetensors, .pth) with the
    published names."""
    output: LocalPath = MISSING
    """File to write; its suffix says which kind: `.onnx` (for onnxruntime, TensorRT, OpenVINO, …; takes the extra
    `onnx`), or `.pt2` (torch.export, for PyTorch without this project)."""
    size: Size | None = None
    """Width and height in pixels of the only pictures that the file takes; null: any size. The file says at which size
    the network was trained."""
    batch: Samples | None = None
    """Pictures at once, no more and no fewer; null: any number."""
    domain: DomainChoice = "target"
    """Whose batch-norm statistics the file has, where the network keeps some per domain: `source` or `target`."""
    class_set: str | None = None
    """Class set of a file of weights that does not say its own; null: the first of `classes_from` with as many
    classes."""
    classes_from: LocalPath | None = None
    """Data set's description (YAML, or its name, such as `cityscapes`) or folder of labelled shards that names the
    classes of such a file, and gives any network's classes their colours and raw ids; null: those of the training."""


@dataclass
class Report:
    """esl-dist report: write runs, their scores and pseudo-labels as one page."""

    runs: Annotated[list[str], LOCAL] = field(default_factory=list)
    """Run folders, and JSON files of scores, in the order in which they are shown; on the command line the words
    without a key. Scores in <run>/scores/ and <experiments>/scores/ are found; the last run's network predicts the
    gallery."""
    scores: Annotated[list[str], LOCAL] = field(default_factory=list)
    """More JSON files of scores, as esl-dist evaluate writes them."""
    pseudo_labels: Annotated[list[str], LOCAL] = field(default_factory=list)
    """Folders of pseudo-labels that are laid open beside those that the runs were trained with."""
    target: ShardFolder | None = None
    """Folder of the shards of the gallery's pictures; null: the target of the last run that has one."""
    pictures: Annotated[int, limits(at_least=0, at_most=200)] = 24
    """Pictures in the gallery, evenly chosen; more than 24 are shown smaller."""
    output: LocalPath = "report.html"
    """HTML file to write; an older report there is replaced."""


@dataclass
class Doctor:
    """esl-dist doctor: say what this machine has, and whether a recipe can run on it."""

    program: Annotated[str, one_of("train", "pseudo-label", "evaluate")] | None = None
    """The program whose settings are looked at; null: train, or the machine alone where nothing is given."""
    recipe: LocalPath | None = None
    """YAML file with its settings, or a recipe's name; null: none."""
    settings: list[str] = field(default_factory=list)
    """Its settings that go before those of the recipe, each as key=value."""
    processes: Annotated[int, limits(at_least=1, at_most=2**20)] | None = None
    """How many processes it is to run in; null: those that a launcher started or, without one, a process for each GPU
    that a training's batch has a share for."""
