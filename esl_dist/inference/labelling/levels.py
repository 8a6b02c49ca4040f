"""The first part of a pseudo-label job: predict the target in pieces, and count its levels while they are there.

What an earlier start predicted is read again and counted. So each pixel is counted once, whoever predicted it when.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain, islice

import torch
from torch import Tensor

from esl_dist.adaptation.entropy import empty_histograms
from esl_dist.adaptation.pseudo_labels import label_and_score
from esl_dist.data.loading import Batch, Samples
from esl_dist.data.shards import Members
from esl_dist.inference.labelling.pieces import (
    LabelJob,
    encode_prediction,
    is_written,
    piece_name,
    pieces_by_shard,
    read_piece,
    require_room,
    write_piece,
)
from esl_dist.prediction.background import in_background, on_host
from esl_dist.prediction.levels import counting, without_padding
from esl_dist.prediction.predictions import own_part, read_batches
from esl_dist.ranks.collectives import broadcast_flags, sum_over_ranks

CountEach = Callable[..., None]
"""Counts a picture's labels and, behind them, the levels of each score."""


def level_histograms(job: LabelJob) -> Tensor:
    """Predict what is missing, and count the levels of all predictions by class.

    Returns:
        int64 (scores, classes, 65536), on the CPU, in the order of the job's scores.

    It is the same on every rank, and when it is returned every rank has written its pieces.

    Raises:
        UserError: there is no room for the pieces, one of an earlier start is damaged, or a network's scores are not
            finite.
    """
    folder, pieces = job.unfinished, list(chain.from_iterable(pieces_by_shard(job.target.images.index)))
    written = broadcast_flags([is_written(folder, folder / piece_name(piece)) for piece in pieces])
    missing = [piece for piece, is_there in zip(pieces, written, strict=True) if not is_there]
    require_room(job, sum(map(len, missing)))
    one = empty_histograms(len(job.made_with["classes"]), job.predictor.device)
    histograms = one.repeat(len(job.bounds), 1, 1)
    count = _counting_each(histograms)
    _predict(job, own_part(missing), count)
    for piece in own_part([piece for piece, is_there in zip(pieces, written, strict=True) if is_there]):
        for _, read in read_piece(job, piece):
            count(*read())
    return sum_over_ranks(histograms).cpu()


def _counting_each(histograms: Tensor) -> CountEach:
    """Return a function for several threads that counts each score in its own of the histograms."""
    counts = [counting(own) for own in histograms]

    def count(labels: Tensor, *levels: Tensor) -> None:
        for count_one, own in zip(counts, levels, strict=True):
            count_one(labels, own)

    return count


@torch.inference_mode()
def _predict(job: LabelJob, pieces: Sequence[range], count: CountEach) -> None:
    """Predict pieces, one picture at a time, and count their levels."""
    if not pieces:
        return
    positions = [[position] for piece in pieces for position in piece]
    pictures, device = Samples(job.target.images, job.target.size), job.predictor.device
    batches = read_batches(pictures, positions, job.workers, device, "predicting")
    with closing(in_background(_prediction(job, batch, count) for batch in batches)) as predictions:
        for piece in pieces:
            write_piece(job, piece, islice(predictions, len(piece)))


def _prediction(job: LabelJob, batch: Batch, count: CountEach) -> Callable[[], Members]:
    """Predict one picture, or queue that on a GPU.

    Returns:
        a function that returns the picture's labels and levels, without padding, as a piece has them; it raises
        `UserError` if the network's scores are not finite.
    """
    images, position = batch["images"], int(batch["positions"][0])
    frame = job.frame or (images.shape[3], images.shape[2])
    width, height = without_padding(job.target.images.index, batch, frame)
    logits = job.predictor.logits(images)

    def compute() -> tuple[Tensor, ...]:
        predicted = label_and_score(logits, (frame[1], frame[0]), *job.trusts)
        labels, *levels = (one[0, :height, :width] for one in predicted)
        count(labels, *levels)
        return labels, *levels, logits.isfinite().all()

    computed = on_host(compute, images.device)

    def prediction() -> Members:
        *predicted, is_finite = computed()
        if not is_finite:
            raise job.predictor.not_finite(job.target.images.where(position))
        return encode_prediction(*predicted)

    return prediction
