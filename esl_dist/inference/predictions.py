"""Predictions of all samples: each sample once, on one of the ranks, which share the work and show how far it is."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from esl_dist.data.images import framed_size
from esl_dist.data.loading import Batch, Samples, batches, on_device
from esl_dist.data.workers import Workers
from esl_dist.inference.predictor import Predictor
from esl_dist.models.resizing import upsample
from esl_dist.ranks.collectives import is_main, note_progress, rank, world_size
from esl_dist.reporting.progress import progress

Item = TypeVar("Item")


def own_part(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's part: every W-th item of W ranks."""
    return items[rank() :: world_size()]


def shown(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """Yield this rank's `total` items and tell the other ranks of each; the main rank shows how far it is."""
    for item in progress(items, total, title) if is_main() else items:
        yield item
        note_progress()


def read_batches(
    samples: Samples, positions: Sequence[list[int]], workers: Workers, device: torch.device, title: str
) -> Iterator[Batch]:
    """Yield the batches that `positions` names on `device`, read ahead by `workers`, as they are `shown`."""
    read = batches(samples, iter(positions), workers, device.type == "cuda")
    return (on_device(batch, device) for batch in shown(read, len(positions), title))


@torch.inference_mode()
def predictions(
    ensemble: Sequence[Predictor], samples: Samples, workers: Workers
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield position, prediction and label of each of this rank's samples.

    Both are train ids (height, width), on the device and without padding: of the label's own size, or, without labels
    (None), of the picture's.

    Args:
        ensemble: networks whose upsampled, weighted logits are added up; a single one is an ensemble, too.
        samples: with labels at their own size, or without.
        workers: the processes that read, a rank.

    Raises:
        UserError: a network's scores of a sample are not finite.
    """
    own, device = own_part([[position] for position in range(len(samples))]), ensemble[0].device
    is_padded = samples.size is not None and samples.images.index.keep_aspect_ratio
    for batch in read_batches(samples, own, workers, device, "predicting" if samples.labels is None else "scoring"):
        images, labels, position = batch["images"], batch["labels"], int(batch["positions"][0])
        own_sizes = batch["own_sizes"] if batch["label_sizes"] is None else batch["label_sizes"]
        width, height = own_sizes[0].tolist()
        # Padded as the pictures are, so that the crop below is the picture.
        frame = (width, height) if labels is None else (labels.shape[2], labels.shape[1])
        if labels is None and is_padded:
            frame = framed_size(frame, (images.shape[3], images.shape[2]))
        where = samples.images.where(position)
        logits = sum(
            (one.weight * upsample(one.logits(images, where), frame[::-1]) for one in ensemble), torch.tensor(0.0)
        )
        label = None if labels is None else labels[0, :height, :width]
        yield position, logits.argmax(1)[0, :height, :width], label
