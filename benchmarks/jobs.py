"""What evaluation and the pseudo-label job do after the network, beside the published way.

Both sides start from the same logits at the network's resolution (one eighth of the input), drawn so that classes form
areas with noisy borders. The plain side is written out as the published programs do it: upsample, NumPy, Pillow; it has
torch on all processors. Ours is the project's own code on one thread for each processor, the job with all that it
writes; so both are measured by the clock. The predictions between the job's parts are three bytes a pixel on disk:
1.5 MB a picture of 1024×512, flat in memory.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Row, UnequalError, compared, medians_in_turn, seconds
from benchmarks.own_step import CLASSES
from esl_dist.adaptation.entropy import HIGHEST_LEVEL
from esl_dist.data.images import Size, decode_label, encode_png
from esl_dist.data.labels import class_names
from esl_dist.data.loading import Samples
from esl_dist.data.shard_index import ShardIndex, write_index
from esl_dist.data.shards import open_shards, shard_name, write_shard
from esl_dist.data.workers import Workers
from esl_dist.inference.labelling.job import write_pseudo_labels
from esl_dist.inference.labelling.pieces import LabelJob
from esl_dist.machine import usable_processors
from esl_dist.prediction.background import in_background
from esl_dist.prediction.confusion import confusion_matrix
from esl_dist.prediction.predictions import most_likely
from esl_dist.prediction.predictor import Predictor
from esl_dist.runs.trained import Provenance, TrainedNetwork

FLOOR = 0.1
CLEAR = 2 / HIGHEST_LEVEL
"""A pixel whose entropy is as near as this to its class's threshold may be kept by one side and not by the other: our
scores are rounded to levels."""
TIED = 1e-5
"""Share of pixels whose two highest logits are so near that a last place decides."""

Array = NDArray[Any]
Sides = tuple[Callable[[], object], Callable[[], object]]
"""Ours and the plain one."""


def rows(quick: bool) -> list[Row]:
    """Measure both jobs, in seconds a picture."""
    scale, pictures, times = (8, 9, 1) if quick else (1, 16, 3)
    with torch.inference_mode():
        return [
            pseudo_label_row((1024 // scale, 512 // scale), pictures, times),
            evaluation_row((2048 // scale, 1024 // scale), pictures // 2, times),
        ]


def pseudo_label_row(size: Size, pictures: int, times: int) -> Row:
    """Measure from logits to pseudo-labels in files.

    Raises:
        UnequalError: the sides kept other labels.
    """
    logits = [drawn_logits(size, seed) for seed in range(pictures)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_target(folder / "target", pictures)

        def ours() -> Path:
            output = Path(tempfile.mkdtemp(dir=folder)) / "labels"
            write_pseudo_labels(job_of(folder / "target", output, logits, size))
            return output

        def plain() -> Path:
            output = Path(tempfile.mkdtemp(dir=folder))
            plain_pseudo_labels(logits, size, output)
            return output

        reader, files = open_shards(ours()), plain()
        kept = [decode_label(reader.read(position, "label")) for position in range(pictures)]
        kept_plainly = [np.array(Image.open(files / f"{position}.png")) for position in range(pictures)]
        require_same_labels(kept, kept_plainly, logits, size)
        name = f"pseudo-labels after the network, {size[0]}×{size[1]}"
        return compared(name, seconds_a_picture(name, (ours, plain), pictures, times), "s/picture", goal=4.0)


def evaluation_row(size: Size, pictures: int, times: int) -> Row:
    """Measure from logits to a confusion matrix.

    Raises:
        UnequalError: the sides have other matrices.
    """
    pairs = [(drawn_logits(size, seed), drawn_label(size, seed)) for seed in range(pictures)]

    def ours() -> Array:
        counts: Array = sum(in_background(partial(our_confusion, *pair) for pair in pairs), torch.zeros(())).numpy()
        return counts

    def plain() -> Array:
        counts: Array = np.sum([plain_confusion(logits, label.numpy()) for logits, label in pairs], 0)
        return counts

    require_same_counts(ours(), plain())
    name = f"evaluation after the network, {size[0]}×{size[1]}"
    return compared(name, seconds_a_picture(name, (ours, plain), pictures, times), "s/picture", goal=5.0)


def seconds_a_picture(name: str, sides: Sides, pictures: int, times: int) -> tuple[float, float]:
    """Return median seconds of both sides, ours first: torch has one thread, and on the plain side all processors."""
    ours, plain = (
        seconds(partial(on_threads, threads, side))
        for threads, side in zip((1, usable_processors()), sides, strict=True)
    )
    both = medians_in_turn(name, ours, plain, times)
    return both[0] / pictures, both[1] / pictures


def on_threads(number: int, work: Callable[[], object]) -> None:
    """Do a work while torch has so many threads in this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        work()
    finally:
        torch.set_num_threads(before)


def drawn_logits(size: Size, seed: int) -> Tensor:
    """Return logits like a network's, (1, 19, height / 8 + 1, width / 8 + 1): areas, and noise on them."""
    random = torch.Generator().manual_seed(seed)
    height, width = size[1] // 8 + 1, size[0] // 8 + 1
    areas = 4 * torch.randn(1, len(CLASSES), 9, 17, generator=random)
    smooth = F.interpolate(areas, (height, width), mode="bicubic", align_corners=True)
    return smooth + 0.5 * torch.randn(smooth.shape, generator=random)


def drawn_label(size: Size, seed: int) -> Tensor:
    """Return a label, uint8 (height, width): areas, some of which do not count."""
    random = np.random.default_rng(seed)
    areas = random.choice([*range(len(CLASSES)), 255], (16, 32)).astype(np.uint8)
    return torch.from_numpy(np.array(Image.fromarray(areas).resize(size, Image.Resampling.NEAREST)))


class Recorded(nn.Module):
    """In a network's place: gives recorded logits, one picture's after the other's."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        """Take logits, (1, classes, …, …) of each picture in turn."""
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))
        self.left: Iterator[Tensor] = iter(logits)

    def forward(self, images: Tensor, domain: str) -> dict[str, Tensor]:
        """Return the next picture's logits, whatever the picture is."""
        return {"main": next(self.left)}


def write_target(folder: Path, pictures: int) -> None:
    """Write shards of pictures of a few pixels, so that reading them takes no time."""
    content = encode_png(np.zeros((8, 8, 3), np.uint8))
    samples = ((f"{number:06d}", {"image.png": content}) for number in range(pictures))
    shard = write_shard(folder / shard_name(0), samples)
    write_index(folder, ShardIndex("drawn", "all", (8, 8), None, {"drawn": CLASSES}, {}, (shard,)))


def job_of(target: Path, output: Path, logits: Sequence[Tensor], size: Size) -> LabelJob:
    """Return the job of labelling shards with a network that gives these logits."""
    known = Provenance("recorded", "drawn", CLASSES, "tiny", False, False, 1, "no", {}, {}, {})
    network: Any = Recorded(logits)
    trained = TrainedNetwork(**vars(known), network=network, name="recorded", step=0)
    return LabelJob(
        predictor=Predictor(trained),
        target=Samples(open_shards(target), None),
        frame=size,
        bounds={"entropy": FLOOR},
        made_with={"classes": class_names(CLASSES), "score": "entropy", "bound": FLOOR},
        output=output,
        workers=Workers(0, 1),
    )


def plain_prediction(logits: Tensor, size: Size) -> tuple[Array, Array]:
    """Return label and entropy as published: softmax, upsample, then NumPy."""
    probabilities = F.interpolate(F.softmax(logits, 1), (size[1], size[0]), mode="bilinear", align_corners=True)
    last = probabilities[0].numpy().transpose(1, 2, 0)
    return np.argmax(last, axis=2), -np.sum(last * np.log(last + 1e-30), axis=2) / math.log(last.shape[2])


def plain_thresholds(labels: Array, entropies: Array) -> Array:
    """Return the threshold of each class as published: its sorted entropies' middle one, or the floor."""
    limits = []
    for number in range(len(CLASSES)):
        own = np.sort(entropies[labels == number])
        limits.append(max(own[round(len(own) * 0.5)], FLOOR) if len(own) else FLOOR)
    return np.array(limits)


def plain_pseudo_labels(logits: Sequence[Tensor], size: Size, folder: Path) -> None:
    """Label as published: all predictions are kept in memory, as float64."""
    labels, entropies = np.zeros((2, len(logits), size[1], size[0]))
    for position, one in enumerate(logits):
        labels[position], entropies[position] = plain_prediction(one, size)
    limits = plain_thresholds(labels, entropies)
    for position, (label, entropy) in enumerate(zip(labels, entropies, strict=True)):
        kept = np.where(entropy > limits[label.astype(np.uint8)], 255, label).astype(np.uint8)
        Image.fromarray(kept).save(folder / f"{position}.png")


def require_same_labels(ours: Sequence[Array], plain: Sequence[Array], logits: Sequence[Tensor], size: Size) -> None:
    """Make sure that both kept the same, but where the entropy is at the threshold or two classes are as likely.

    Raises:
        UnequalError: they did not.
    """
    labels, entropies = (np.stack(kind) for kind in zip(*(plain_prediction(one, size) for one in logits), strict=True))
    limits = plain_thresholds(labels, entropies)
    clear = np.abs(entropies - limits[labels]) > CLEAR
    apart = int((np.stack(ours) != np.stack(plain))[clear].sum())
    if clear.mean() < 0.99 or apart > TIED * labels.size + 1:
        raise UnequalError(f"pseudo-labels: {apart} of {clear.sum()} clear pixels differ")


def require_same_counts(ours: Array, plain: Array) -> None:
    """Make sure that both counted the same pairs, but where two classes are as likely.

    Raises:
        UnequalError: they did not.
    """
    apart = np.abs(ours - plain).sum() / 2
    if ours.sum() != plain.sum() or apart > TIED * plain.sum() + 1:
        raise UnequalError(f"evaluation: {apart:.0f} pixels are counted elsewhere")


def our_confusion(logits: Tensor, label: Tensor) -> Tensor:
    """Return the confusion matrix as the evaluation counts it."""
    return confusion_matrix(label, most_likely(logits, (label.shape[0], label.shape[1]))[0], len(CLASSES))


def plain_confusion(logits: Tensor, label: Array) -> Array:
    """Return the confusion matrix as published (fast_hist)."""
    upsampled = F.interpolate(logits, label.shape, mode="bilinear", align_corners=True)
    predicted = np.argmax(upsampled[0].numpy().transpose(1, 2, 0), axis=2).flatten()
    flat, count = label.flatten(), len(CLASSES)
    counted = (flat >= 0) & (flat < count)
    pairs = count * flat[counted].astype(int) + predicted[counted]
    return np.bincount(pairs, minlength=count**2).reshape(count, count)
