"""From trained networks and labelled shards to scores, coloured predictions and TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from esl_dist import config as settings
from esl_dist.data.images import as_size, encode_png, fitted_size
from esl_dist.data.labels import ClassSet, class_names
from esl_dist.data.loading import Batch, Samples, label_source, refuse_mixed_sizes
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.engine.distributed import is_main
from esl_dist.engine.evaluator import Member, estimate_statistics, evaluate
from esl_dist.engine.trained import TrainedNetwork
from esl_dist.errors import UserError
from esl_dist.files import whole_file
from esl_dist.reporting.pictures import Picture, class_colors
from esl_dist.reporting.scores import scores_of
from esl_dist.reporting.tensorboard import open_writer, write_pictures, write_scalars

SHOWN_PREDICTIONS = 8
"""How many of the coloured predictions TensorBoard gets."""


def score_networks(
    networks: Sequence[TrainedNetwork],
    weights: Sequence[float],
    shards: ShardReader,
    config: settings.Evaluate,
    predictions: Path | None,
    device: torch.device,
) -> dict[str, Any]:
    """Score an ensemble, or a single network as one, and write its curves; returns `scores_of` its confusion matrix.

    Args:
        networks: on `device`.
        weights: factor on each network's logits.
        shards: the labelled pictures.
        config: how to read and score them.
        predictions: folder for coloured predictions; None: none are written.
        device: where to compute.

    Raises:
        UserError: networks of different classes, or shards that do not fit them.
    """
    first = networks[0]
    for other in networks[1:]:
        if class_names(other.classes) != class_names(first.classes):
            raise UserError(f"{other.name} and {first.name} have different classes; an ensemble needs the same")
    size = as_size(config.data.size)
    samples = Samples(shards, size, label_source(shards, first.class_set, first.classes))
    if config.statistics_from is not None:
        pictures = Samples(open_shards(config.statistics_from), size)
        refuse_mixed_sizes(pictures.images, size, "data.size")
        for one in networks:
            estimate_statistics(one.network, pictures, config.workers, device, one.batch_size)
    painter = None if predictions is None else _Painter(samples, first.classes, predictions)
    paint = None if painter is None else painter.paint
    ensemble = [Member(one.network, weight) for one, weight in zip(networks, weights, strict=True)]
    confusion = evaluate(ensemble, samples, len(first.classes), config.workers, device, paint)
    scores = scores_of(confusion, class_names(first.classes))
    if is_main():
        name = "+".join(one.name for one in networks)
        logs = (first.logs if len(networks) == 1 else None) or Path(config.experiments) / "logs" / name
        # In a folder of its own: what an interrupted training wrote is hidden when it goes on, scores are not.
        with open_writer(logs / "scores", None) as writer:
            _write_curves(writer, f"{shards.index.dataset}_{shards.index.split}", scores, painter, first.step or 0)
    return scores


class _Painter:
    """Writes this rank's predictions as <key>.png in the colours of the classes, at their pictures' own size."""

    def __init__(self, samples: Samples, classes: ClassSet, folder: Path) -> None:
        self.samples, self.classes, self.folder = samples, classes, folder
        self.shown: dict[str, Picture] = {}

    def paint(self, batch: Batch, prediction: Tensor) -> None:
        key = self.samples.images.key(int(batch["positions"][0]))
        if Path(key).is_absolute() or ".." in Path(key).parts:
            raise UserError(f"{self.samples.images.where(int(batch['positions'][0]))}: its key leads out of a folder")
        if self.samples.images.index.keep_aspect_ratio and self.samples.size is not None:
            own_width, own_height = batch["own_sizes"][0].tolist()
            width, height = fitted_size((own_width, own_height), (prediction.shape[1], prediction.shape[0]))
            prediction = prediction[:height, :width]
        picture = class_colors(prediction, self.classes)
        with whole_file(self.folder / f"{key}.png") as file:
            file.write(encode_png(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)))  # type: ignore[arg-type]
        if len(self.shown) < SHOWN_PREDICTIONS:
            self.shown[key] = picture


def _write_curves(
    writer: SummaryWriter, data: str, scores: dict[str, Any], painter: _Painter | None, step: int
) -> None:
    means = {"miou": scores["miou"], **{f"miou_{count}": value for count, value in scores["miou_over"].items()}}
    write_scalars(writer, f"score/{data}", {name: value for name, value in means.items() if value is not None}, step)
    classes = {name: value for name, value in scores["iou"].items() if value is not None}
    write_scalars(writer, f"iou/{data}", classes, step)
    if painter is not None:
        write_pictures(writer, f"prediction/{data}", painter.shown, step)
