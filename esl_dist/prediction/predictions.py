"""Predictions of all samples: each sample once, on one of the ranks, which share the work and show how far it is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from esl_dist.adaptation.pseudo_labels import TRUST, positive_probabilities
from esl_dist.data.images import Size, framed_size
from esl_dist.data.loading import Batch, Samples, batches, on_device
from esl_dist.data.sampling import as_they_are
from esl_dist.data.workers import Workers
from esl_dist.models.row_tiles import highest_class, resized_rows
from esl_dist.prediction.background import on_host
from esl_dist.prediction.confusion import confusion_matrix
from esl_dist.prediction.predictor import Predictor
from esl_dist.ranks.collectives import is_main, note_progress, rank, world_size
from esl_dist.reporting.progress import progress

Item = TypeVar("Item")

HIGHEST_GREY = 255
"""Grey level of a score of 1."""


def own_part(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's part: every W-th item of W ranks."""
    return items[rank() :: world_size()]


def shown(items: Iterable[Item], total: int, title: str, unit: str = "sample") -> Iterator[Item]:
    """Yield this rank's `total` items and tell the other ranks of each; the main rank shows how far it is."""
    for item in progress(items, total, title, unit=unit) if is_main() else items:
        yield item
        note_progress()


def read_batches(
    samples: Samples, positions: Sequence[list[int]], workers: Workers, device: torch.device, title: str
) -> Iterator[Batch]:
    """Yield the batches that `positions` names on `device`, read ahead by `workers`, as they are `shown`."""
    read = batches(samples, as_they_are(positions), workers, device.type == "cuda")
    return (on_device(batch, device) for batch in shown(read, len(positions), title))


class Prediction(NamedTuple):
    """What networks predict of a sample, on the host.

    Attributes:
        position: the sample's.
        labels: predicted train ids, uint8 (height, width) without padding: of the label's own size, or, without labels,
            of the picture's.
        confusion: of these with the sample's label, int64 (classes, classes); zeros without labels.
    """

    position: int
    labels: Tensor
    confusion: Tensor


@torch.inference_mode()
def predictions(
    ensemble: Sequence[Predictor], samples: Samples, workers: Workers
) -> Iterator[Callable[[], Prediction]]:
    """Yield, for each of this rank's samples, a function that returns what is predicted of it.

    The networks' part is done, or queued on a GPU, when the function is yielded; the rest is for `in_background`.

    Args:
        ensemble: networks whose weighted logits are added up; a single one is an ensemble, too.
        samples: with labels at their own size, or without.
        workers: the processes that read, a rank.

    Raises:
        UserError: by the function: a network's scores of the sample are not finite.
    """
    own, device = own_part([[position] for position in range(len(samples))]), ensemble[0].device
    for batch in read_batches(samples, own, workers, device, "predicting" if samples.labels is None else "scoring"):
        yield prediction(ensemble, samples, batch, [one.logits(batch["images"]) for one in ensemble])


def prediction(
    ensemble: Sequence[Predictor], samples: Samples, batch: Batch, logits: Sequence[Tensor]
) -> Callable[[], Prediction]:
    """Return a function that gives what is predicted of a sample by each network's `logits` of it."""
    position, labels = int(batch["positions"][0]), batch["labels"]
    frame, (height, width) = _frame_and_size(samples, batch)

    def compute() -> tuple[Tensor, ...]:
        # Resizing is linear: the sum of resized logits is the resized sum.
        total = torch.stack([one.weight * own for one, own in zip(ensemble, logits, strict=True)]).sum(0)
        predicted, classes = most_likely(total, frame)[0, :height, :width], total.shape[1]
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        if labels is not None:
            confusion = confusion_matrix(labels[0, :height, :width], predicted, classes)
        return predicted, confusion, torch.stack([own.isfinite().all() for own in logits])

    computed = on_host(compute, batch["images"].device)

    def made() -> Prediction:
        predicted, confusion, are_finite = computed()
        for one, is_finite in zip(ensemble, are_finite.tolist(), strict=True):
            if not is_finite:
                raise one.not_finite(samples.images.where(position))
        return Prediction(position, predicted, confusion)

    return made


def _frame_and_size(samples: Samples, batch: Batch) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the heights and widths at which a sample is predicted, and of what is no padding in it."""
    images, labels = batch["images"], batch["labels"]
    own_sizes = batch["own_sizes"] if batch["label_sizes"] is None else batch["label_sizes"]
    width, height = own_sizes[0].tolist()
    if labels is not None:
        return (labels.shape[1], labels.shape[2]), (height, width)
    is_padded = samples.size is not None and samples.images.index.keep_aspect_ratio
    return predicted_at((width, height), (images.shape[3], images.shape[2]), is_padded), (height, width)


def predicted_at(own: Size, seen: Size, is_padded: bool) -> tuple[int, int]:
    """Return the height and width at which a picture is predicted so that its part at the top left is of its own size.

    Args:
        own: width and height of the picture.
        seen: those of the network's input.
        is_padded: whether that is the picture with its aspect ratio, filled up at the right and below.
    """
    width, height = framed_size(own, seen) if is_padded else own
    return height, width


def grey_scores(logits: Tensor, size: tuple[int, int], kinds: Sequence[str]) -> list[Tensor]:
    """Return scores as grey levels, round(255 · score): of each kind uint8 (batch, *size).

    They are those by which pseudo-labels are chosen: of probabilities at the resolution of the logits, then resized.

    Args:
        logits: (batch, classes, …, …).
        size: height and width.
        kinds: names in `TRUST`: `entropy`, `confidence`.
    """
    levels = [logits.new_empty((logits.shape[0], *size), dtype=torch.uint8) for _ in kinds]
    if kinds:
        for rows, probabilities in resized_rows(positive_probabilities(logits), size):
            for kind, grey in zip(kinds, levels, strict=True):
                grey[:, rows] = TRUST[kind].score(probabilities).clamp(0, 1).mul_(HIGHEST_GREY).round_()
    return levels


def most_likely(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the classes of the highest resized logits: uint8 (batch, *size).

    Args:
        logits: (batch, classes, …, …).
        size: height and width.
    """
    labels = logits.new_empty((logits.shape[0], *size), dtype=torch.uint8)
    for rows, scores in resized_rows(logits, size):
        labels[:, rows] = highest_class(scores)
    return labels
