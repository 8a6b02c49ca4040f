"""Scoring: every sample once, on one of the ranks; confusion matrices add up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.data.images import Size, framed_size
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch, Samples, batches
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.inference.conditions import Precision, autocast
from esl_dist.models.batch_norm import Domain, batch_norms, estimate_anew
from esl_dist.models.deeplab import DeepLab, upsample
from esl_dist.ranks.collectives import is_main, note_progress, rank, sum_over_ranks, world_size
from esl_dist.reporting.progress import progress, silent


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count pixels by label (rows) and prediction (columns): int64 (classes, classes), on the CPU.

    Args:
        labels: train ids; `IGNORE_INDEX` is not counted.
        predictions: train ids, same shape; `IGNORE_INDEX` is not counted either.
        classes: number of classes.
    """
    counted = (labels != IGNORE_INDEX) & (predictions != IGNORE_INDEX)
    pairs = labels[counted].to(torch.int64) * classes + predictions[counted].to(torch.int64)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes).cpu()


@dataclass(frozen=True)
class Member:
    """A network of an ensemble, in evaluation mode: the factor on its logits, and how it predicts."""

    network: DeepLab
    weight: float
    domain: Domain = "target"
    precision: Precision = "no"


@torch.inference_mode()
def evaluate(
    ensemble: Sequence[Member],
    samples: Samples,
    classes: int,
    workers: Workers,
    device: torch.device,
    show: Callable[[Batch, Tensor], None] | None = None,
) -> NDArray[np.int64]:
    """Return the confusion matrix over all samples and ranks, the same on every rank; zeros where there are no labels.

    Args:
        ensemble: networks on `device`, whose upsampled logits are added up; a single one is an ensemble, too.
        samples: with labels at their own size; without labels, predictions are of the pictures' own sizes.
        classes: number of classes.
        workers: the processes that read, a rank.
        device: where to compute.
        show: called with each of this rank's batches of one sample and its prediction, train ids (height, width),
            without padding.

    Raises:
        UserError: a network's scores of a sample are no finite numbers.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for batch in own_samples(samples, workers, device, "predicting" if samples.labels is None else "scoring"):
        labels = batch["labels"]
        frame = _own_frame(samples, batch) if labels is None else (labels.shape[2], labels.shape[1])
        images, where = batch["images"].to(device), samples.images.where(int(batch["positions"][0]))
        logits = sum(
            member.weight * upsample(scores_of_member(member, images, where), frame[::-1]) for member in ensemble
        )
        assert isinstance(logits, Tensor)
        predictions = logits.argmax(1)
        if labels is not None:
            confusion += confusion_matrix(labels.to(device), predictions, classes)
        if show is not None:
            own_sizes = batch["own_sizes"] if labels is None else batch["label_sizes"]
            assert own_sizes is not None
            width, height = own_sizes[0].tolist()
            show(batch, predictions[0, :height, :width])
    return sum_over_ranks(confusion).numpy()


def _own_frame(samples: Samples, batch: Batch) -> Size:
    """Return the size of a picture as packed and, if it is padded when read, of as much padding."""
    width, height = batch["own_sizes"][0].tolist()
    padded = samples.size is not None and samples.images.index.keep_aspect_ratio
    return framed_size((width, height), samples.size) if padded and samples.size is not None else (width, height)


def scores_of_member(member: Member, images: Tensor, where: str) -> Tensor:
    """Return a network's logits, float32 at its resolution, for the sample that messages call `where`.

    Raises:
        UserError: they are not all finite: of such scores the highest would be the same class everywhere.
    """
    with autocast(member.precision, images.device):
        logits: Tensor = member.network(images, member.domain)["main"].float()
    if not logits.isfinite().all():
        remedy = "its weights may be damaged" if member.precision == "no" else "choose precision=no"
        raise UserError(
            f"{where}: the network's scores are no finite numbers in precision {member.precision}; {remedy}"
        )
    return logits


@torch.inference_mode()
def estimate_statistics(
    network: DeepLab,
    samples: Samples,
    workers: Workers,
    device: torch.device,
    batch_size: int,
    precision: Precision = "no",
) -> None:
    """Estimate the network's batch-norm statistics anew as the mean over all batches of `samples`.

    The ranks share the batches; every batch is one rank's, with statistics of its own, so that the mean over all of
    them is the same (to rounding) for any number of ranks. Samples that do not fill a last batch are left out, unless
    there is no other batch.

    Args:
        network: on `device`; in evaluation mode afterwards.
        samples: pictures of the domain.
        workers: the processes that read, a rank.
        device: where to compute.
        batch_size: pictures a batch.
        precision: of the passes.
    """
    estimate_anew(network)
    network.train()
    starts = range(0, max(len(samples) - batch_size + 1, 1), batch_size)
    groups = [list(range(start, min(start + batch_size, len(samples)))) for start in starts]
    own = groups[rank() :: world_size()]
    show = progress if is_main() else silent
    for batch in show(batches(samples, iter(own), workers, device.type == "cuda"), len(own), "statistics"):
        with autocast(precision, device):
            network(batch["images"].to(device))
        note_progress()
    for module in batch_norms(network):
        for statistic in (module.running_mean, module.running_var):
            assert statistic is not None
            statistic.copy_(sum_over_ranks(statistic * len(own)) / len(groups))
    network.eval()


def own_samples(samples: Samples, workers: Workers, device: torch.device, title: str) -> Iterator[Batch]:
    """Yield this rank's part of all samples, one at a time: each sample on one rank, once."""
    own = range(rank(), len(samples), world_size())
    read = batches(samples, iter([[position] for position in own]), workers, device.type == "cuda")
    for batch in (progress if is_main() else silent)(read, len(own), title):
        yield batch
        note_progress()
