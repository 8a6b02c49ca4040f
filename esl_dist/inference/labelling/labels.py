"""The second part of a pseudo-label job: the labels that thresholds over the whole target keep, and their summary."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esl_dist.adaptation.pseudo_labels import TRUST, Threshold, keep_trusted, kept_pixels
from esl_dist.checked import read_content
from esl_dist.data.images import encode_predicted, padded, resize_label
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.shards import Members
from esl_dist.inference.labelling.histograms import Bins, count_right
from esl_dist.inference.labelling.pieces import LabelJob, Read, is_written, pieces_by_shard, read_piece, write_tar
from esl_dist.prediction.background import in_background
from esl_dist.prediction.confusion import confusion_matrix
from esl_dist.prediction.predictions import own_part, shown
from esl_dist.ranks.collectives import sum_over_ranks
from esl_dist.reporting.scores import pixel_accuracy

LABELS = ("label.png",)
"""What pseudo-label shards have of each sample."""


@dataclass(frozen=True)
class Rule:
    """Which predictions are kept, and in which bins those are counted that are right."""

    limits: list[Threshold]
    bins: list[Bins]


class Comparison(NamedTuple):
    """What labels say of predictions; sums over pictures and ranks.

    Attributes:
        confusion: of labels and what is kept, int64 (classes, classes).
        right: of each score what `count_right` counts, int64 (scores, 2, classes, bins).
    """

    confusion: Tensor
    right: Tensor

    def add(self, other: "Comparison") -> None:
        """Add another one to this one."""
        for own, more in zip(self, other, strict=True):
            own.add_(more)


def nothing_compared(job: LabelJob, rule: Rule) -> Comparison:
    """Return the comparison of no picture."""
    classes, bins = len(job.made_with["classes"]), max(one.most for one in rule.bins)
    shapes = (classes, classes), (len(rule.bins), 2, classes, bins)
    return Comparison(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))


def write_labels(job: LabelJob, rule: Rule) -> Comparison:
    """Write this rank's pseudo-label shards, where they are not there yet.

    Returns:
        what the target's labels say of all predictions, the same on every rank; zeros where there are none.
    """
    index, compared = job.target.images.index, nothing_compared(job, rule)
    own = own_part(list(zip(index.shards, pieces_by_shard(index), strict=True)))
    for shard, pieces in shown(own, len(own), "labelling", "shard"):
        with closing(_pseudo_labels(job, pieces, rule, compared)) as samples:
            if not is_written(job.unfinished, job.output / shard.name):
                write_tar(job.unfinished, job.output / shard.name, samples)
            elif job.target.labels is not None:
                # An earlier start wrote and counted it; only the count has to be repeated.
                for _ in samples:
                    pass
    return Comparison(*map(sum_over_ranks, compared))


def _pseudo_labels(
    job: LabelJob, pieces: list[range], rule: Rule, compared: Comparison
) -> Generator[tuple[str, Members]]:
    """Yield what is kept of the predictions of `pieces`, and add to `compared` what labels say of them."""
    predictions = chain.from_iterable(read_piece(job, piece) for piece in pieces)
    tasks = (partial(_pseudo_label, job, rule, *prediction) for prediction in predictions)
    with closing(in_background(tasks)) as pseudo_labels:
        for position, content, comparison in pseudo_labels:
            if comparison is not None:
                compared.add(comparison)
            yield job.target.images.key(position), {LABELS[0]: content}


def _pseudo_label(job: LabelJob, rule: Rule, position: int, read: Read) -> tuple[int, bytes, Comparison | None]:
    """Return position and PNG file of a sample's pseudo-label, and what the label, if there is one, says of it."""
    labels, *levels = read()
    kept = keep_trusted(labels, levels[0], rule.limits, job.trusts[0]).numpy()
    if job.frame is not None:
        kept = padded(kept, job.frame, IGNORE_INDEX)
    if job.target.labels is None:
        return position, encode_predicted(kept), None
    truth = resize_label(job.target.label(position), (kept.shape[1], kept.shape[0]))
    comparison = nothing_compared(job, rule)
    confusion = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(kept), len(rule.limits))
    # What is predicted has no padding, which lies at the right and below.
    inside = truth[: labels.shape[0], : labels.shape[1]].astype(np.uint8, copy=False)
    for total, bins, own in zip(comparison.right, rule.bins, levels, strict=True):
        total[:, :, : bins.most] = torch.from_numpy(count_right(bins, labels.numpy(), own.numpy(), inside))
    return position, encode_predicted(kept), comparison._replace(confusion=confusion)


def summary_of(job: LabelJob, histograms: Tensor, limits: list[Threshold], confusion: Tensor) -> dict[str, Any]:
    """Return what is told of a job: thresholds, pixels predicted and kept a class, and shares of all."""
    names, predicted = job.made_with["classes"], histograms.sum(1).tolist()
    kept = kept_pixels(histograms, limits, job.trusts[0])
    return {
        "score": job.made_with["score"],
        "kept": sum(kept) / max(sum(predicted), 1),
        "accuracy": pixel_accuracy(confusion.numpy()),
        "classes": {
            name: {"threshold": limit.score, "pixels_predicted": one_predicted, "pixels_kept": one_kept}
            for name, limit, one_predicted, one_kept in zip(names, limits, predicted, kept, strict=True)
        },
    }


def read_summary(file: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Read what a finished job says of its pseudo-labels.

    Args:
        file: summary.json.
        names: of the classes it has to be about; None: of any.

    Raises:
        UserError: it is missing, or not what `summary_of` returns.
    """
    content = read_content(file, f"delete {file.parent} and label again")
    content.at("kept").number(0, 1)
    if (accuracy := content.at("accuracy")).value is not None:
        accuracy.number(0, 1)
    if (score := content.at("score")).text() not in TRUST:
        score.refuse(f"one of {', '.join(TRUST)}")
    classes = content.at("classes")
    if not classes.mapping():
        classes.refuse("at least one class")
    if names is not None and list(classes.mapping()) != list(names):
        classes.refuse(f"the classes {', '.join(names)}, in this order")
    for _, one in classes.items():
        one.at("threshold").number(0, 1)
        one.at("pixels_kept").whole_number(maximum=one.at("pixels_predicted").whole_number())
    summary: dict[str, Any] = content.value
    return summary
