"""From trained networks and labelled shards to scores, coloured predictions and TensorBoard."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.data.images import as_size, decode_image, encode_png
from esl_dist.data.labels import class_names
from esl_dist.data.loading import Batch, Samples, label_source, refuse_mixed_sizes
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import Workers
from esl_dist.engine.distributed import refuse_disagreement, wait_for_all
from esl_dist.engine.evaluator import Member, estimate_statistics, evaluate
from esl_dist.engine.sizes import refuse_single_value
from esl_dist.engine.trained import TrainedNetwork
from esl_dist.errors import UserError
from esl_dist.files import whole_file
from esl_dist.reporting.pictures import Picture, class_colors
from esl_dist.reporting.scores import scores_of
from esl_dist.reporting.tensorboard import open_writer, write_pictures, write_scalars

SHOWN_PREDICTIONS = 8
"""How many of the coloured predictions TensorBoard gets."""

LONGEST_NAME = 100
"""Characters of the name of an ensemble's folder in TensorBoard, which lists its networks."""


def score_networks(
    networks: Sequence[TrainedNetwork],
    weights: Sequence[float],
    shards: ShardReader,
    config: settings.Evaluate,
    predictions: Path | None,
    device: torch.device,
) -> dict[str, Any]:
    """Score an ensemble, or a single network as one; returns `scores_of` its confusion matrix.

    Args:
        networks: on `device`.
        weights: factor on each network's logits.
        shards: the labelled pictures.
        config: how to read and score them.
        predictions: folder for coloured predictions, <key>.png at the size of the label; None: none are written.
        device: where to compute.

    Raises:
        UserError: networks of different classes, or shards that do not fit them.
    """
    first = networks[0]
    for other in networks[1:]:
        if class_names(other.classes) != class_names(first.classes):
            raise UserError(f"{other.name} and {first.name} have different classes; an ensemble needs the same")
    size = as_size(config.data.size)
    workers = Workers(config.workers, config.timeout_minutes)
    samples = Samples(shards, size, label_source(shards, first.class_set, first.classes))
    if config.statistics_from is not None:
        pictures = Samples(open_shards(config.statistics_from), size)
        refuse_disagreement(pictures.images.fingerprint(), "statistics_from")
        refuse_mixed_sizes(pictures.images, size, "data.size")
        for one in networks:
            if (packed := size or pictures.images.index.image_size) is not None:
                together = min(one.batch_size, len(pictures))
                refuse_single_value(packed, together, "statistics_from", "larger pictures as data.size=[width,height]")
            estimate_statistics(one.network, pictures, workers, device, one.batch_size)

    def paint(batch: Batch, prediction: Tensor) -> None:
        assert predictions is not None
        assert batch["label_sizes"] is not None
        file = predictions / picture_name(shards, int(batch["positions"][0]))
        width, height = batch["label_sizes"][0].tolist()
        _write_picture(file, class_colors(prediction[:height, :width], first.classes))

    ensemble = [Member(one.network, weight) for one, weight in zip(networks, weights, strict=True)]
    confusion = evaluate(ensemble, samples, len(first.classes), workers, device, None if predictions is None else paint)
    wait_for_all()
    return scores_of(confusion, class_names(first.classes))


def picture_name(shards: ShardReader, position: int) -> str:
    """Return the file name of a sample's coloured prediction, which may hold folders.

    Raises:
        UserError: the sample's key leads out of a folder.
    """
    key = shards.key(position)
    if Path(key).is_absolute() or ".." in Path(key).parts:
        raise UserError(f"{shards.where(position)}: its key leads out of a folder; it is not to be trusted")
    return f"{key}.png"


def are_painted(shards: ShardReader, predictions: Path) -> bool:
    """Say whether the coloured predictions of all samples are in a folder; a kill may have left some of them."""
    return all((predictions / picture_name(shards, position)).is_file() for position in range(len(shards)))


def _write_picture(file: Path, picture: Picture) -> None:
    with whole_file(file) as opened:
        opened.write(encode_png(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)))  # type: ignore[arg-type]


def write_score_curves(
    networks: Sequence[TrainedNetwork],
    scores: dict[str, Any],
    shards: ShardReader,
    experiments: Path,
    predictions: Path | None,
) -> None:
    """Write scores, and the first coloured predictions, to TensorBoard; on the main rank.

    Args:
        networks: one, or an ensemble.
        scores: theirs (`scores_of`).
        shards: on which they were scored.
        experiments: in its logs/ are the curves of what does not lie in a run's folder.
        predictions: folder of coloured predictions; None: there are none.
    """
    data, step = f"{shards.index.dataset}_{shards.index.split}", networks[0].step or 0
    name = "+".join(one.name for one in networks)[:LONGEST_NAME]
    logs = (networks[0].logs if len(networks) == 1 else None) or experiments / "logs" / name
    means = {"miou": scores["miou"], **{f"miou_{count}": value for count, value in scores["miou_over"].items()}}
    # In a folder of its own: what an interrupted training wrote is hidden when it goes on, scores are not.
    with closing(open_writer(logs / "scores", None)) as writer:
        for group, values in (("score", means), ("iou", scores["iou"])):
            known = {name: value for name, value in values.items() if value is not None}
            write_scalars(writer, f"{group}/{data}", known, step)
        if predictions is not None:
            files = [picture_name(shards, position) for position in range(min(len(shards), SHOWN_PREDICTIONS))]
            pictures = {file: decode_image((predictions / file).read_bytes())[:, :, ::-1] for file in files}
            write_pictures(writer, f"prediction/{data}", pictures, step)
