"""Scores of a network or an ensemble on all pictures, and their curves in TensorBoard."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esl_dist.data.images import decode_image
from esl_dist.data.labels import class_names
from esl_dist.data.loading import LabelSource, Samples, label_source, refuse_mixed_sizes
from esl_dist.data.shards import ShardReader
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.inference.prediction_files import PredictionFiles
from esl_dist.models.batch_norm import batch_norms, estimate_anew
from esl_dist.prediction.background import in_background
from esl_dist.prediction.predictions import Prediction, own_part, predictions, read_batches
from esl_dist.prediction.predictor import Predictor, autocast
from esl_dist.ranks.collectives import sum_over_ranks, warn
from esl_dist.reporting.scores import scores_of
from esl_dist.reporting.tensorboard import LAST_SCORE, SCORES, open_writer, write_pictures, write_scalars
from esl_dist.runs.trained import TrainedNetwork

SHOWN_PREDICTIONS = 8
"""How many of the coloured predictions TensorBoard gets."""

LONGEST_NAME = 100
"""Characters of the name of an ensemble's folder in TensorBoard, which lists its networks."""


@dataclass(frozen=True)
class Scoring:
    """What networks are scored on, and what is left of it besides the scores.

    Attributes:
        shards: the pictures; without labels there are predictions and no scores.
        statistics: pictures on which batch-norm statistics are estimated anew; None: the networks' own are taken.
        files: the predictions; None: they are not written.
        experiments: in its logs/ are the curves of what does not lie in a run's folder.
        workers: the processes that read, a rank.
    """

    shards: ShardReader
    statistics: ShardReader | None
    files: PredictionFiles | None
    experiments: Path
    workers: Workers

    @property
    def is_labelled(self) -> bool:
        """Whether pictures can be scored; without labels there is no class set."""
        return bool(self.shards.index.class_sets)


def score_networks(ensemble: Sequence[Predictor], scoring: Scoring) -> dict[str, Any]:
    """Score an ensemble, or a single network as one.

    Returns:
        `scores_of` its confusion matrix over all ranks, and the matrix itself as `confusion`.

    Raises:
        UserError: networks of different classes or at different sizes, or shards that do not fit them.
    """
    shards, first = scoring.shards, ensemble[0]
    names = class_names(first.trained.classes)
    refuse_unlike(ensemble)
    labels = labels_for(first.trained, shards)
    if scoring.statistics is not None:
        for one in ensemble:
            refuse_statistics(one, scoring.statistics)
        ensemble = [_with_statistics_of(one, scoring.statistics, scoring.workers) for one in ensemble]
    predicted = predictions(ensemble, Samples(shards, first.size, labels), scoring.workers)
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    with closing(in_background(partial(_scored, one, scoring.files) for one in predicted)) as scored:
        for counts in scored:
            confusion += counts
    # With this sum each rank also says that its predictions are written.
    total = sum_over_ranks(confusion).numpy()
    return {**scores_of(total, names), "confusion": total.tolist()}


def refuse_unlike(ensemble: Sequence[Predictor]) -> None:
    """Make sure that networks can be scored as one.

    Raises:
        UserError: they have different classes, or see pictures at different sizes.
    """
    first = ensemble[0]
    for other in ensemble:
        pair = f"{other.trained.name} and {first.trained.name}"
        if class_names(other.trained.classes) != class_names(first.trained.classes):
            raise UserError(f"{pair} have different classes; an ensemble needs the same")
        if other.size != first.size:
            raise UserError(
                f"{pair} were trained at different sizes; an ensemble sees pictures at one: give it as "
                "data.size=[width,height], or as_packed=true for that of the shards"
            )


def labels_for(trained: TrainedNetwork, shards: ShardReader) -> LabelSource | None:
    """Return the labels of shards as a network's classes; None: they have none.

    Raises:
        UserError: labels of other classes.
    """
    return label_source(shards, trained.class_set, trained.classes) if shards.index.class_sets else None


def refuse_statistics(predictor: Predictor, shards: ShardReader) -> None:
    """Make sure that a network's batch-norm statistics can be estimated on shards.

    Raises:
        UserError: it has none, or does not take these pictures.
    """
    network, batch_size = predictor.trained.network, min(predictor.trained.batch_size, len(shards))
    if not any(True for _ in batch_norms(network)):
        raise UserError(
            f"statistics_from={shards.folder} is impossible: {predictor.trained.name}, a "
            f"{predictor.trained.architecture}, has no batch norm; leave it out"
        )
    refuse_mixed_sizes(shards, predictor.size, "data.size")
    if (size := predictor.size or shards.index.image_size) is not None:
        # As the estimate has it.
        network.train()
        try:
            network.refuse_size(size, batch_size, "statistics_from", "data.size=[width,height]")
        finally:
            network.eval()


def _scored(predicted: Callable[[], Prediction], files: PredictionFiles | None) -> Tensor:
    """Return a sample's confusion matrix when its prediction is written."""
    prediction = predicted()
    if files is not None:
        files.write(prediction.position, prediction.labels)
    return prediction.confusion


@torch.inference_mode()
def _with_statistics_of(predictor: Predictor, shards: ShardReader, workers: Workers) -> Predictor:
    """Estimate a network's statistics of the target anew, as the mean over all batches of `shards`; it then takes them.

    The ranks share the batches; every batch is one rank's, with statistics of its own, so that the mean over all of
    them is the same (to rounding) for any number of ranks. Samples that do not fill a last batch are left out, unless
    there is no other batch.
    """
    network, batch_size, count = predictor.trained.network, predictor.trained.batch_size, len(shards)
    starts = range(0, max(count - batch_size + 1, 1), batch_size)
    own = own_part([list(range(start, min(start + batch_size, count))) for start in starts])
    estimate_anew(network)
    network.train()
    for batch in read_batches(Samples(shards, predictor.size), own, workers, predictor.device, "statistics"):
        with autocast(predictor.precision, predictor.device):
            network(batch["images"])
    for module in batch_norms(network):
        for statistic in (module.running_mean, module.running_var):
            assert statistic is not None
            statistic.copy_(sum_over_ranks(statistic * len(own)) / len(starts))
    network.eval()
    return replace(predictor, domain="target")


def write_score_curves(ensemble: Sequence[Predictor], scores: dict[str, Any], scoring: Scoring) -> Path | None:
    """Write scores, and the first coloured predictions, to TensorBoard; on the main rank. Returns the curves' folder.

    Curves that cannot be written cost a warning, and None is returned: the scores are printed, and written elsewhere.
    """
    first, name = ensemble[0].trained, "+".join(one.trained.name for one in ensemble)[:LONGEST_NAME]
    logs = (first.logs if len(ensemble) == 1 else None) or scoring.experiments / "logs" / name
    step, data, files = first.step or 0, f"{scoring.shards.index.dataset}_{scoring.shards.index.split}", scoring.files
    means = {"miou": scores["miou"], **{f"miou_{count}": value for count, value in scores["miou_over"].items()}}
    try:
        # In a folder of its own: what an interrupted training wrote is hidden when it goes on, scores are not.
        with closing(open_writer(logs / SCORES, None)) as writer:
            write_scalars(writer, {LAST_SCORE: scores["miou"]}, step)
            for group, values in (("score", means), ("iou", scores["iou"])):
                known = {f"{group}/{data}/{name}": value for name, value in values.items() if value is not None}
                write_scalars(writer, known, step)
            if files is not None and files.form == "colors":
                shown = [files.file(position) for position in range(min(len(files.shards), SHOWN_PREDICTIONS))]
                pictures = {
                    str(file.relative_to(files.folder)): decode_image(file.read_bytes())[:, :, ::-1] for file in shown
                }
                write_pictures(writer, f"prediction/{data}", pictures, step)
    except OSError as error:
        warn(f"{logs}: curves cannot be written ({error.strerror}); the scores themselves are kept")
        return None
    return logs
