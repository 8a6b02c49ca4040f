"""The first part of a pseudo-label job: at each pixel a class, and the score that says whether to trust it."""

from itertools import chain

import numpy as np
import torch

from esl_dist.adaptation.pseudo_labels import label_and_score
from esl_dist.data.images import encode_png, fitted_size
from esl_dist.data.loading import Batch, Samples
from esl_dist.data.shards import Members
from esl_dist.inference.labelling.pieces import PREDICTION, LabelJob, is_written, piece_name, pieces_by_shard, write_tar
from esl_dist.inference.predictions import own_part, read_batches
from esl_dist.ranks.collectives import broadcast_flags


@torch.inference_mode()
def predict_pieces(job: LabelJob) -> None:
    """Predict this rank's part of the pieces that are not there yet, one picture at a time."""
    folder, pieces = job.unfinished, list(chain.from_iterable(pieces_by_shard(job.target.images.index)))
    missing = broadcast_flags([not is_written(folder, folder / piece_name(piece)) for piece in pieces])
    own = own_part([piece for piece, is_missing in zip(pieces, missing, strict=True) if is_missing])
    positions = [[position] for piece in own for position in piece]
    pictures, device = Samples(job.target.images, job.target.size), job.predictor.device
    predictions = (
        _prediction(job, batch) for batch in read_batches(pictures, positions, job.workers, device, "predicting")
    )
    for piece in own:
        keys = [job.target.images.key(position) for position in piece]
        # The keys come first: when they run out, zip takes no prediction of the next piece.
        write_tar(folder, folder / piece_name(piece), zip(keys, predictions, strict=False))
    if own:
        # Asked for one more, the progress bar sees the end.
        next(predictions, None)


def _prediction(job: LabelJob, batch: Batch) -> Members:
    """Predict one picture: its labels and the levels of their scores, without padding, as PNG files."""
    images = batch["images"].to(job.predictor.device)
    width, height = job.frame or (images.shape[3], images.shape[2])
    logits = job.predictor.logits(images, job.target.images.where(int(batch["positions"][0])))
    labels, levels = label_and_score(logits, (height, width), job.trust)
    if job.target.images.index.keep_aspect_ratio:
        own_width, own_height = batch["own_sizes"][0].tolist()
        width, height = fitted_size((own_width, own_height), (width, height))
    return {
        PREDICTION[0]: encode_png(labels[0, :height, :width].cpu().numpy().astype(np.uint8)),
        PREDICTION[1]: encode_png(levels[0, :height, :width].cpu().numpy().astype(np.uint16)),
    }
