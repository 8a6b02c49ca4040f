"""What evaluation and the pseudo-label job do after the network, beside the published way: `python benchmarks/jobs.py`.

Both sides start from the same logits at the network's resolution (one eighth of the input), drawn so that classes form
areas with noisy borders. The plain side is written out as the published programs do it: upsample, NumPy, Pillow; it has
torch on all processors. Ours is the project's own code, the job with all that it writes. The predictions between its
parts are three bytes a pixel on disk: 1.5 MB a picture of 1024×512, flat in memory.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from esl_dist.adaptation.entropy import HIGHEST_LEVEL
from esl_dist.adaptation.pseudo_labels import TRUST
from esl_dist.data.images import decode_label, encode_png
from esl_dist.data.labels import SemanticClass, class_names
from esl_dist.data.loading import Samples
from esl_dist.data.shard_index import ShardIndex, write_index
from esl_dist.data.shards import open_shards, shard_name, write_shard
from esl_dist.data.workers import Workers
from esl_dist.inference.background import in_background
from esl_dist.inference.confusion import confusion_matrix
from esl_dist.inference.labelling.job import write_pseudo_labels
from esl_dist.inference.labelling.pieces import LabelJob
from esl_dist.inference.predictions import most_likely
from esl_dist.inference.predictor import Predictor
from esl_dist.machine import usable_processors
from esl_dist.runs.trained import Provenance, TrainedNetwork

CLASSES = tuple(SemanticClass(f"class {number}", (number, 0, 0), (number,)) for number in range(19))
FLOOR = 0.1
CLEAR = 2 / HIGHEST_LEVEL
"""A pixel whose entropy is as near as this to its class's threshold may be kept by one side and not by the other: our
scores are rounded to levels."""
TIED = 1e-5
"""Share of pixels whose two highest logits are so near that a last place decides."""

Array = NDArray[Any]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure both jobs; with `quick` at tiny sizes.

    Raises:
        ValueError: the sides do not have equal results.
    """
    scale, pictures, times = (8, 9, 1) if quick else (1, 16, 3)
    return [
        pseudo_label_row((1024 // scale, 512 // scale), pictures, times),
        evaluation_row((2048 // scale, 1024 // scale), pictures // 2, times),
    ]


def pseudo_label_row(size: tuple[int, int], pictures: int, times: int) -> dict[str, Any]:
    """Measure from logits to pseudo-labels in files: seconds a picture."""
    logits = [drawn_logits(size, seed) for seed in range(pictures)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_target(folder / "target", pictures)
        ours: list[Array] = []
        plain: list[Array] = []

        def our_side(number: int) -> None:
            job = job_of(folder / "target", folder / f"ours_{number}", logits, size)
            write_pseudo_labels(job)

        def plain_side(number: int) -> None:
            (folder / f"plain_{number}").mkdir()
            plain_pseudo_labels(logits, size, folder / f"plain_{number}")

        seconds = in_turn(our_side, plain_side, times)
        reader = open_shards(folder / "ours_0")
        ours = [decode_label(reader.read(position, "label")) for position in range(pictures)]
        plain = [np.array(Image.open(folder / f"plain_0/{position}.png")) for position in range(pictures)]
    require_same_labels(ours, plain, logits, size)
    return row(f"pseudo-labels after the network, {size[0]}×{size[1]}", seconds, pictures, 4.0)


def evaluation_row(size: tuple[int, int], pictures: int, times: int) -> dict[str, Any]:
    """Measure from logits to a confusion matrix: seconds a picture."""
    logits = [drawn_logits(size, seed) for seed in range(pictures)]
    labels = [drawn_label(size, seed) for seed in range(pictures)]
    found: dict[str, Array] = {}

    def our_side(number: int) -> None:
        tasks = (partial(our_confusion, one, label) for one, label in zip(logits, labels, strict=True))
        found["ours"] = sum(in_background(tasks), torch.zeros(())).numpy()

    def plain_side(number: int) -> None:
        pairs = zip(logits, labels, strict=True)
        found["plain"] = np.sum([plain_confusion(one, label.numpy()) for one, label in pairs], 0)

    seconds = in_turn(our_side, plain_side, times)
    apart = np.abs(found["ours"] - found["plain"]).sum() / 2
    if found["ours"].sum() != found["plain"].sum() or apart > TIED * found["plain"].sum() + 1:
        raise ValueError(f"evaluation: {apart:.0f} pixels are counted elsewhere")
    return row(f"evaluation after the network, {size[0]}×{size[1]}", seconds, pictures, 5.0)


def in_turn(ours: Callable[[int], None], plain: Callable[[int], None], times: int) -> tuple[float, float]:
    """Return median seconds of both, each done so many times in turn, after one time that does not count."""
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(times + 1):
        for name, side, threads in (("ours", ours, 1), ("plain", plain, usable_processors())):
            torch.set_num_threads(threads)
            began = time.perf_counter()
            side(number)
            taken[name].append(time.perf_counter() - began)
    return median(taken["ours"][1:]), median(taken["plain"][1:])


def row(name: str, seconds: tuple[float, float], pictures: int, goal: float) -> dict[str, Any]:
    """Return a row of the results: seconds a picture of both sides, and how many times faster ours is."""
    ours, plain = (side / pictures for side in seconds)
    return {"name": name, "ours": ours, "plain": plain, "unit": "s/picture", "ratio": plain / ours, "goal": goal}


def drawn_logits(size: tuple[int, int], seed: int) -> Tensor:
    """Return logits like a network's, (1, 19, height / 8 + 1, width / 8 + 1): areas, and noise on them."""
    random = torch.Generator().manual_seed(seed)
    height, width = size[1] // 8 + 1, size[0] // 8 + 1
    areas = 4 * torch.randn(1, len(CLASSES), 9, 17, generator=random)
    smooth = F.interpolate(areas, (height, width), mode="bicubic", align_corners=True)
    return smooth + 0.5 * torch.randn(smooth.shape, generator=random)


def drawn_label(size: tuple[int, int], seed: int) -> Tensor:
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


def job_of(target: Path, output: Path, logits: Sequence[Tensor], size: tuple[int, int]) -> LabelJob:
    """Return the job of labelling shards with a network that gives these logits."""
    known = Provenance("recorded", "drawn", CLASSES, "tiny", False, False, 1, "no", {}, {}, {})
    network: Any = Recorded(logits)
    trained = TrainedNetwork(**vars(known), network=network, name="recorded", step=0)
    return LabelJob(
        predictor=Predictor(trained),
        target=Samples(open_shards(target), None),
        frame=size,
        trust=TRUST["entropy"],
        made_with={"classes": class_names(CLASSES), "score": "entropy", "bound": FLOOR},
        output=output,
        workers=Workers(0, 1),
    )


def plain_prediction(logits: Tensor, size: tuple[int, int]) -> tuple[Array, Array]:
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


def plain_pseudo_labels(logits: Sequence[Tensor], size: tuple[int, int], folder: Path) -> None:
    """Label as published: all predictions are kept in memory, as float64."""
    labels, entropies = np.zeros((2, len(logits), size[1], size[0]))
    for position, one in enumerate(logits):
        labels[position], entropies[position] = plain_prediction(one, size)
    limits = plain_thresholds(labels, entropies)
    for position, (label, entropy) in enumerate(zip(labels, entropies, strict=True)):
        kept = np.where(entropy > limits[label.astype(np.uint8)], 255, label).astype(np.uint8)
        Image.fromarray(kept).save(folder / f"{position}.png")


def require_same_labels(
    ours: Sequence[Array], plain: Sequence[Array], logits: Sequence[Tensor], size: tuple[int, int]
) -> None:
    """Make sure that both kept the same, but where the entropy is at the threshold or two classes are as likely.

    Raises:
        ValueError: they did not.
    """
    labels, entropies = (np.stack(kind) for kind in zip(*(plain_prediction(one, size) for one in logits), strict=True))
    limits = plain_thresholds(labels, entropies)
    clear = np.abs(entropies - limits[labels]) > CLEAR
    apart = int((np.stack(ours) != np.stack(plain))[clear].sum())
    if clear.mean() < 0.99 or apart > TIED * labels.size + 1:
        raise ValueError(f"pseudo-labels: {apart} of {clear.sum()} clear pixels differ")


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


def main() -> None:
    """Print the rows as JSON."""
    with torch.inference_mode():
        print(json.dumps(rows("--quick" in sys.argv[1:]), indent=1))


if __name__ == "__main__":
    main()
