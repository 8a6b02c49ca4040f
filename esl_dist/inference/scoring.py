"""From trained networks and shards to scores, predictions and curves in TensorBoard."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.data.class_sets import read_class_sets, same_classes
from esl_dist.data.images import decode_image
from esl_dist.data.labels import ClassSet, class_names
from esl_dist.data.loading import Batch, Samples, label_source, refuse_mixed_sizes
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.inference.conditions import Conditions
from esl_dist.inference.ensemble import Member, estimate_statistics, evaluate
from esl_dist.inference.prediction_files import picture_name, raw_id_table, write_prediction
from esl_dist.models.deeplab import refuse_single_value
from esl_dist.ranks.collectives import require_same_on_ranks, wait_for_all, warn
from esl_dist.reporting.scores import scores_of
from esl_dist.reporting.tensorboard import open_writer, write_pictures, write_scalars
from esl_dist.runs.load import TrainedNetwork

SHOWN_PREDICTIONS = 8
"""How many of the coloured predictions TensorBoard gets."""

LONGEST_NAME = 100
"""Characters of the name of an ensemble's folder in TensorBoard, which lists its networks."""


def is_labelled(shards: ShardReader) -> bool:
    """Say whether pictures can be scored; without labels there is no class set."""
    return bool(shards.index.class_sets)


def score_networks(
    networks: Sequence[TrainedNetwork],
    weights: Sequence[float],
    conditions: Sequence[Conditions],
    shards: ShardReader,
    config: settings.Evaluate,
    device: torch.device,
) -> dict[str, Any]:
    """Score an ensemble, or a single network as one; returns `scores_of` its confusion matrix.

    Predictions go to `config.predictions`, <key>.png at the size of the label or else the picture.

    Args:
        networks: on `device`.
        weights: factor on each network's logits.
        conditions: under which each network predicts.
        shards: the pictures; without labels there are predictions and no scores.
        config: how to read and score them.
        device: where to compute.

    Raises:
        UserError: networks of different classes or at different sizes, or shards that do not fit them.
    """
    first, size = networks[0], conditions[0].size
    for other, how in zip(networks, conditions, strict=True):
        if class_names(other.classes) != class_names(first.classes):
            raise UserError(f"{other.name} and {first.name} have different classes; an ensemble needs the same")
        if how.size != size:
            raise UserError(
                f"{other.name} and {first.name} were trained at different sizes; an ensemble sees pictures at one: "
                "give it as data.size=[width,height], or as_packed=true for that of the shards"
            )
    labels = label_source(shards, first.class_set, first.classes) if is_labelled(shards) else None
    samples = Samples(shards, size, labels)
    if config.statistics_from is not None:
        _estimate(networks, conditions, config, device)
        conditions = [Conditions("target", size, one.precision) for one in conditions]
    written = written_classes(first, shards, config)
    predictions = None if config.predictions is None else Path(config.predictions)

    def write(batch: Batch, prediction: Tensor) -> None:
        assert predictions is not None
        file = predictions / picture_name(shards, int(batch["positions"][0]))
        write_prediction(file, prediction, written, config.prediction_format)

    ensemble = [
        Member(one.network, weight, how.domain, how.precision)
        for one, weight, how in zip(networks, weights, conditions, strict=True)
    ]
    confusion = evaluate(
        ensemble,
        samples,
        len(first.classes),
        Workers(config.workers, config.timeout_minutes),
        device,
        None if predictions is None else write,
    )
    wait_for_all()
    return scores_of(confusion, class_names(first.classes))


def _estimate(
    networks: Sequence[TrainedNetwork],
    conditions: Sequence[Conditions],
    config: settings.Evaluate,
    device: torch.device,
) -> None:
    """Estimate the target's statistics of all networks anew; they are shared by all, or kept in the target's place."""
    assert config.statistics_from is not None
    size = conditions[0].size
    pictures = Samples(open_shards(config.statistics_from), size)
    require_same_on_ranks(pictures.images.fingerprint(), "statistics_from")
    refuse_mixed_sizes(pictures.images, size, "data.size")
    workers = Workers(config.workers, config.timeout_minutes)
    for one, how in zip(networks, conditions, strict=True):
        if (seen := size or pictures.images.index.image_size) is not None:
            together = min(one.batch_size, len(pictures))
            refuse_single_value(seen, together, "statistics_from", "larger pictures as data.size=[width,height]")
        estimate_statistics(one.network, pictures, workers, device, one.batch_size, how.precision)


def written_classes(trained: TrainedNetwork, shards: ShardReader, config: settings.Evaluate) -> ClassSet:
    """Return the classes with the colours and raw ids that predictions are written in.

    They are those of `config.classes_from`, of the shards where these have labels, or else the network's.

    Raises:
        UserError: `config.classes_from` names other classes, or raw ids are asked for that there are not.
    """
    if config.classes_from is not None:
        classes = classes_named(trained, config.classes_from)
    else:
        classes = same_classes(trained.class_set, trained.classes, shards.index.class_sets) or trained.classes
    if config.predictions is not None and config.prediction_format == "raw_ids":
        raw_id_table(classes)
    return classes


def classes_named(trained: TrainedNetwork, classes_from: str) -> ClassSet:
    """Return a network's classes as the setting `classes_from` knows them.

    Raises:
        UserError: it names other classes.
    """
    known = same_classes(trained.class_set, trained.classes, read_class_sets(Path(classes_from)))
    if known is None:
        raise UserError(
            f"classes_from={classes_from}: has no class set {trained.class_set!r} of the network's classes "
            f"{', '.join(class_names(trained.classes))}"
        )
    return known


def write_score_curves(
    networks: Sequence[TrainedNetwork],
    scores: dict[str, Any],
    shards: ShardReader,
    experiments: Path,
    predictions: Path | None,
) -> Path | None:
    """Write scores, and the first coloured predictions, to TensorBoard; on the main rank. Returns the curves' folder.

    Curves that cannot be written cost a warning, and None is returned: the scores are printed, and written elsewhere.

    Args:
        networks: one, or an ensemble.
        scores: theirs (`scores_of`).
        shards: on which they were scored.
        experiments: in its logs/ are the curves of what does not lie in a run's folder.
        predictions: folder of coloured predictions; None: there are none.
    """
    name = "+".join(one.name for one in networks)[:LONGEST_NAME]
    logs = (networks[0].logs if len(networks) == 1 else None) or experiments / "logs" / name
    try:
        _write_curves(logs / "scores", networks[0].step or 0, scores, shards, predictions)
    except OSError as error:
        warn(f"{logs}: curves cannot be written ({error.strerror}); the scores are not lost by that")
        return None
    return logs


def _write_curves(
    folder: Path, step: int, scores: dict[str, Any], shards: ShardReader, predictions: Path | None
) -> None:
    data = f"{shards.index.dataset}_{shards.index.split}"
    means = {"miou": scores["miou"], **{f"miou_{count}": value for count, value in scores["miou_over"].items()}}
    # In a folder of its own: what an interrupted training wrote is hidden when it goes on, scores are not.
    with closing(open_writer(folder, None)) as writer:
        for group, values in (("score", means), ("iou", scores["iou"])):
            known = {name: value for name, value in values.items() if value is not None}
            write_scalars(writer, f"{group}/{data}", known, step)
        if predictions is not None:
            files = [picture_name(shards, position) for position in range(min(len(shards), SHOWN_PREDICTIONS))]
            pictures = {file: decode_image((predictions / file).read_bytes())[:, :, ::-1] for file in files}
            write_pictures(writer, f"prediction/{data}", pictures, step)
