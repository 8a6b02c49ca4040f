"""The gallery: target pictures as the network of a run sees them, beside pseudo-labels and ground truth.

Everything is shown at the size of what is predicted: labels as palette PNG, so that they are small and keep the
classes' colours, pictures as JPEG. Scores of a picture are those of an evaluation of this picture alone.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from esl_dist.adaptation.entropy import HIGHEST_LEVEL
from esl_dist.adaptation.pseudo_labels import TRUST, label_and_score
from esl_dist.config import Evaluate, Pictures, Report
from esl_dist.data.labels import IGNORE_INDEX, ClassSet, class_names
from esl_dist.data.loading import Batch, Samples, batches, label_source, on_device
from esl_dist.data.sampling import as_they_are, evenly
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import Workers
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.inference.inputs import open_inputs
from esl_dist.inference.scoring import labels_for
from esl_dist.prediction.levels import without_padding
from esl_dist.prediction.predictions import prediction
from esl_dist.prediction.predictor import Predictor
from esl_dist.report.runs import RunFolder, elsewhere
from esl_dist.reporting.pictures import natural_colors
from esl_dist.reporting.progress import progress
from esl_dist.reporting.scores import intersection_over_union, mean_iou, pixel_accuracy
from esl_dist.urls import is_url

LONGEST_SIDE = 640
"""Of a picture on the page, in pixels."""
AT_FULL_SIZE = 24
"""More pictures than these are shown smaller, so that the page stays below some 15 MB."""
JPEG_QUALITY = 85
ENTROPY_LEVELS = 32
"""Of the 256 colours, so that the map compresses; a step is 3 % of the highest entropy."""

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Gallery:
    """What the pictures of a gallery are made of.

    Attributes:
        predictor: the network.
        pictures: the target, with its labels or without.
        pseudo_labels: those of the target; None: there are none.
        side: of the longest side on the page.
        problems: what of all this cannot be read, as it is found.
    """

    predictor: Predictor
    pictures: Samples
    pseudo_labels: Samples | None
    side: int
    problems: list[str]

    @property
    def classes(self) -> ClassSet:
        """The network's classes."""
        return self.predictor.trained.classes


def gallery(config: Report, runs: Sequence[RunFolder], device: torch.device) -> dict[str, Any]:
    """Predict evenly chosen pictures of the target by the network of the last run.

    Returns:
        the network, the pictures, and a note in place of those that cannot be shown.
    """
    if not runs or config.pictures == 0:
        return {"pictures": [], "note": "No pictures were asked for." if runs else "A gallery needs a run."}
    try:
        shown = _opened(config, runs, device)
        positions = evenly(len(shown.pictures), config.pictures)
        pictures = list(_pictures(shown, positions))
    except UserError as error:
        return {"pictures": [], "note": f"No pictures can be shown: {error}"}
    trained = shown.predictor.trained
    return {
        "run": trained.name,
        "step": trained.step,
        "target": str(shown.pictures.images.folder),
        "pseudo_labels": _folder_of_labels(shown.pseudo_labels),
        "classes": class_names(shown.classes),
        "ramp": np.reshape(entropy_palette(), (-1, 3)).tolist(),
        "of": len(shown.pictures),
        "pictures": pictures,
        "note": f"Not all can be shown: {'; '.join(shown.problems)}" if shown.problems else None,
    }


def _folder_of_labels(samples: Samples | None) -> str | None:
    return None if samples is None or samples.labels is None else str(samples.labels.shards.folder)


def side_on_page(pictures: int) -> int:
    """Return the longest side at which so many pictures are shown."""
    return round(LONGEST_SIDE * min(1.0, math.sqrt(AT_FULL_SIZE / pictures)))


def _opened(config: Report, runs: Sequence[RunFolder], device: torch.device) -> Gallery:
    run = runs[-1]
    targets = [one.config.target.path for one in reversed(runs) if one.config.target.path]
    if config.target is None and not targets:
        raise UserError("no run names a target; give its shards as target=…")
    path = config.target or targets[0]
    if config.target is None and not is_url(path) and not Path(path).exists():
        raise UserError(f"{path}: these shards of the target are not there; {elsewhere('target=…')}")
    asked = Evaluate(checkpoint=str(run.folder), data=Pictures(path=path), workers=0)
    inputs = open_inputs(asked.data, asked, device)
    predictor = inputs.load(run.folder)
    trained, shards = predictor.trained, inputs.shards
    pseudo_labels, problems = _pseudo_labels(config, runs, shards, predictor)
    labels = None
    try:
        labels = labels_for(trained, shards)
    except UserError as error:
        problems.append(f"ground truth: {error}")
    side = side_on_page(min(config.pictures, len(shards)))
    return Gallery(predictor, Samples(shards, predictor.size, labels), pseudo_labels, side, problems)


def _pseudo_labels(
    config: Report, runs: Sequence[RunFolder], shards: ShardReader, predictor: Predictor
) -> tuple[Samples | None, list[str]]:
    """Return the newest pseudo-labels of the target, None where there are none of these pictures, and problems."""
    trained, problems = predictor.trained, list[str]()
    own = [run.config.pseudo_labels for run in reversed(runs) if run.config.pseudo_labels is not None]
    for place in [*own, *reversed(config.pseudo_labels)]:
        if not Path(place).is_dir():
            continue
        try:
            reader = open_shards(place)
            if list(reader.keys()) == list(shards.keys()) and reader.index.class_sets.keys() == {trained.class_set}:
                source = label_source(reader, trained.class_set, trained.classes)
                return Samples(shards, predictor.size, source), problems
        except UserError as error:
            problems.append(str(error))
    return None, problems


@torch.inference_mode()
def _pictures(shown: Gallery, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of pictures, with a progress bar; one that is damaged is left out."""
    for position in progress(positions, len(positions), "pictures"):
        read = batches(shown.pictures, as_they_are([[position]]), Workers(0, 10.0), False)
        try:
            batch = on_device(next(read), shown.predictor.device)
        except CorruptSampleError as error:
            shown.problems.append(str(error))
            continue
        yield _picture(shown, batch)


def _picture(shown: Gallery, batch: Batch) -> dict[str, Any]:
    """Return what the page shows and tells of a picture."""
    predictor, images, position = shown.predictor, batch["images"], int(batch["positions"][0])
    logits = predictor.logits(images)
    predicted = prediction([predictor], shown.pictures, batch, [logits])()
    frame = (images.shape[3], images.shape[2])
    width, height = without_padding(shown.pictures.images.index, batch, frame)
    labels, levels = label_and_score(logits, (frame[1], frame[0]), TRUST["entropy"])
    entropy = levels[0, :height, :width].cpu().numpy().astype(np.float64) / HIGHEST_LEVEL
    classes = labels[0, :height, :width].cpu().numpy()
    size = _fitted((width, height), shown.side)
    confusion, has_labels = predicted.confusion.numpy(), shown.pictures.labels is not None
    told: dict[str, Any] = {
        "key": shown.pictures.images.key(position),
        "size": size,
        "entropy_mean": float(entropy.mean()),
        "predicted": _present(classes, shown.classes),
        "labelled": None,
        "accuracy": pixel_accuracy(confusion) if has_labels else None,
        "miou": _miou(confusion) if has_labels else None,
        "kept": None,
        "layers": {
            "image": jpeg_url(natural_colors(images[0, :, :height, :width]), size),
            "prediction": labels_url(classes, shown.classes, size),
            "entropy": entropy_url(entropy, size),
        },
    }
    if (whole := _pseudo_label(shown, position)) is not None:
        kept = _without_frame(whole, (width, height), frame)
        told["kept"] = float((kept != IGNORE_INDEX).mean())
        told["layers"]["pseudo-label"] = labels_url(kept, shown.classes, size)
    if batch["labels"] is not None:
        own_height, own_width = predicted.labels.shape
        truth = batch["labels"][0, :own_height, :own_width].cpu().numpy()
        told["labelled"] = _present(truth, shown.classes)
        told["layers"]["ground truth"] = labels_url(truth, shown.classes, size)
    return told


def _pseudo_label(shown: Gallery, position: int) -> Labels | None:
    try:
        return None if shown.pseudo_labels is None else shown.pseudo_labels.label(position)
    except CorruptSampleError as error:
        shown.problems.append(str(error))
        return None


def _miou(confusion: NDArray[np.int64]) -> float | None:
    mean = mean_iou(intersection_over_union(confusion))
    return None if np.isnan(mean) else mean


def _present(labels: Labels, classes: ClassSet) -> list[int]:
    return [int(one) for one in np.unique(labels) if one < len(classes)]


def _without_frame(label: Labels, size: tuple[int, int], frame: tuple[int, int]) -> Labels:
    """Cut a label of whichever size to the part of it that is no padding in a picture of `frame`."""
    height, width = label.shape
    return label[: max(1, round(height * size[1] / frame[1])), : max(1, round(width * size[0] / frame[0]))]


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def jpeg_url(picture: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """Return a picture, red, green, blue (height, width, 3), as a data URL of a width and height."""
    content = BytesIO()
    resized = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    resized.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _data_url("image/jpeg", content)


def labels_url(labels: Labels, classes: ClassSet, size: tuple[int, int]) -> str:
    """Return train ids (height, width) in the colours of their classes; what is no class is transparent."""
    known = np.minimum(labels, len(classes))
    picture = Image.fromarray(known.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    colors = [channel for item in classes for channel in item.color]
    return _palette_url(picture, [*colors, 0, 0, 0], len(classes))


def entropy_url(entropy: NDArray[np.float64], size: tuple[int, int]) -> str:
    """Return entropies in [0, 1], (height, width), from dark blue (sure) to yellow (unsure)."""
    # In float32, the mode in which Pillow resizes numbers.
    resized = np.asarray(Image.fromarray(entropy.astype(np.float32)).resize(size, Image.Resampling.BOX))
    steps = np.minimum((resized * ENTROPY_LEVELS).astype(np.uint8), ENTROPY_LEVELS - 1)
    return _palette_url(Image.fromarray(steps), entropy_palette(), None)


def entropy_palette() -> list[int]:
    """Return red, green and blue of each step of entropy, one after the other."""
    steps = np.round((np.arange(ENTROPY_LEVELS) + 0.5) / ENTROPY_LEVELS * 255).astype(np.uint8)
    painted: NDArray[np.uint8] = cv2.applyColorMap(steps[None], cv2.COLORMAP_VIRIDIS)[0].astype(np.uint8)
    return [int(channel) for channel in painted[:, ::-1].flatten()]


def _palette_url(picture: Image.Image, palette: list[int], transparent: int | None) -> str:
    picture.putpalette(palette)
    content = BytesIO()
    options = {} if transparent is None else {"transparency": transparent}
    picture.save(content, "PNG", optimize=True, **options)
    return _data_url("image/png", content)


def _data_url(kind: str, content: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
