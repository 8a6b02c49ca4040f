"""Scoring: every sample once, on one of the ranks; confusion matrices add up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch, Samples, batches
from esl_dist.data.workers import Workers
from esl_dist.engine.distributed import is_main, note_work, rank, sum_over_ranks, world_size
from esl_dist.models.batch_norm import batch_norms, estimate_anew
from esl_dist.models.deeplab import DeepLab, upsample
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
    """A network of an ensemble, in evaluation mode, and the factor on its logits."""

    network: DeepLab
    weight: float


@torch.inference_mode()
def evaluate(
    ensemble: Sequence[Member],
    samples: Samples,
    classes: int,
    workers: Workers,
    device: torch.device,
    show: Callable[[Batch, Tensor], None] | None = None,
) -> NDArray[np.int64]:
    """Return the confusion matrix over all samples and ranks, the same on every rank.

    Args:
        ensemble: networks on `device`, whose upsampled logits are added up; a single one is an ensemble, too.
        samples: with labels at their own size.
        classes: number of classes.
        workers: the processes that read, a rank.
        device: where to compute.
        show: called with each of this rank's batches of one sample and its prediction, train ids (height, width).
    """
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for batch in own_samples(samples, workers, device, "scoring"):
        labels = batch["labels"]
        assert labels is not None
        images = batch["images"].to(device)
        logits = sum(
            member.weight * upsample(member.network(images)["main"].float(), labels.shape[1:]) for member in ensemble
        )
        assert isinstance(logits, Tensor)
        predictions = logits.argmax(1)
        confusion += confusion_matrix(labels.to(device), predictions, classes)
        if show is not None:
            show(batch, predictions[0])
    return sum_over_ranks(confusion).numpy()


@torch.inference_mode()
def estimate_statistics(
    network: DeepLab, samples: Samples, workers: Workers, device: torch.device, batch_size: int
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
    """
    estimate_anew(network)
    network.train()
    starts = range(0, max(len(samples) - batch_size + 1, 1), batch_size)
    groups = [list(range(start, min(start + batch_size, len(samples)))) for start in starts]
    own = groups[rank() :: world_size()]
    show = progress if is_main() else silent
    for batch in show(batches(samples, iter(own), workers, device.type == "cuda"), len(own), "statistics"):
        network(batch["images"].to(device))
        note_work()
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
        note_work()
