"""The two tasks on real pictures: what is source and target, at which size, and how they are packed.

No picture of a validation split, nor of its sequence as far as the data set names sequences, is in what is trained on:
CamVid's dusk is one sequence, of which the first half is trained on and the second scored, as shared by others; of its
day, the target of KITTI, one whole sequence is scored and the others are trained on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import PROJECT, run
from esl_dist.data.shard_index import INDEX_NAME


@dataclass(frozen=True)
class Scale:
    """How large a table is computed.

    Attributes:
        size: width and height in pixels at which networks see pictures; labels are scored at their own size.
        steps: of each stage; what starts from another network's last step is trained for as many again.
        batch_size: pictures of each domain a step.
        network: settings of the network, but for its start.
        precision: of forward passes.
    """

    size: tuple[int, int]
    steps: int
    batch_size: int
    network: tuple[str, ...]
    precision: str

    @property
    def words(self) -> list[str]:
        """Return the settings of every training."""
        return [
            f"batch_size={self.batch_size}",
            f"steps={self.steps}",
            f"optimizer.schedule_steps={self.steps}",
            f"optimizer.warm_up_steps={self.steps // 10}",
            f"precision={self.precision}",
            *self.network,
        ]


MOBILENET = ("network.architecture=timm/mobilenetv2_100", "network.auxiliary_head=false")

SCALES = {
    "cpu": Scale((256, 192), 400, 4, MOBILENET, "bf16"),
    "full": Scale((480, 360), 10_000, 8, MOBILENET, "bf16"),
    "tiny": Scale((64, 48), 2, 2, ("network.architecture=tiny", "network.auxiliary_head=false"), "no"),
}
"""`cpu` is that of the reported table, `full` for one GPU, `tiny` for trying the program."""


@dataclass(frozen=True)
class Split:
    """A split of a data set that configs/datasets describes."""

    data_set: str
    name: str


@dataclass(frozen=True)
class Task:
    """A source with labels, a target without, and what is scored.

    Attributes:
        title: in tables.
        source: the labelled split.
        target: the split that is trained on without labels.
        validation: the split of the target that is scored.
        source_aspect: width by height of the source's pictures where it is not the target's: they are resized to the
            target's height, and a part of the target's width is cut from them at random; None: it is the same.
        rare_pixels: more pixels than this show a class in a source label, more than that in a part of it, at the `cpu`
            scale. Published: 3,000 of GTA5's 1914×1052, and 1,500 once those are 1280×720; here as large a share of
            a label, to 3 %, but for CamVid's second, which has no effect, since its pictures are not cut.
    """

    title: str
    source: Split
    target: Split
    validation: Split
    rare_pixels: tuple[int, int]
    source_aspect: float | None = None

    def rare_class_words(self, scale: Scale) -> list[str]:
        """Return the settings by which source pictures with rare classes are drawn more often."""
        larger = math.prod(scale.size) / math.prod(SCALES["cpu"].size)
        least, in_crop = (round(larger * pixels) for pixels in self.rare_pixels)
        keys = {"temperature": 0.01, "least_pixels": least, "least_in_crop": in_crop}
        return [f"source.rare_classes.{key}={value}" for key, value in keys.items()]


TASKS = {
    "camvid_dusk": Task(
        "CamVid day → dusk",
        Split("camvid", "day"),
        Split("camvid", "dusk_train"),
        Split("camvid", "dusk_val"),
        rare_pixels=(75, 38),
    ),
    "kitti_camvid": Task(
        "KITTI → CamVid day",
        Split("kitti", "train"),
        Split("camvid", "day_train"),
        Split("camvid", "day_val"),
        rare_pixels=(182, 199),
        source_aspect=960 / 290,
    ),
}


def source_size(task: Task, scale: Scale) -> tuple[int, int]:
    """Return width and height to which source pictures are resized."""
    width, height = scale.size
    return (width, height) if task.source_aspect is None else (round(task.source_aspect * height), height)


def data_words(task: Task, scale: Scale) -> list[str]:
    """Return the settings by which every training of a task sees pictures, but for where they lie."""
    words = [f"source.size={_list(source_size(task, scale))}", f"target.size={_list(scale.size)}"]
    if task.source_aspect is not None:
        words.append(f"source.crop={_list(scale.size)}")
    return [*words, "source.mirror=true", "target.mirror=true"]


def pack(task: Task, scale: Scale, data: Path, shards: Path) -> None:
    """Pack a task's splits at the size of the training, those that are not packed yet.

    Args:
        task: whose splits.
        scale: its size.
        data: folder of the data sets, each under the name of its description.
        shards: folder for the shards; each part goes below it: source, target, validation.
    """
    for part, split, size, scored in (
        ("source", task.source, source_size(task, scale), False),
        ("target", task.target, scale.size, False),
        # A score is of the labels' own size.
        ("validation", task.validation, scale.size, True),
    ):
        if not (shards / part / INDEX_NAME).is_file():
            sizes = [f"size={_list(size)}", *([] if scored else [f"label_size={_list(size)}"])]
            run("shards/prepare.py", [*_place(split, data), f"output={shards / part}", *sizes])


def _place(split: Split, data: Path) -> list[str]:
    dataset = PROJECT / f"configs/datasets/{split.data_set}.yaml"
    return [f"dataset={dataset}", f"root={data / split.data_set}", f"split={split.name}"]


def _list(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"
