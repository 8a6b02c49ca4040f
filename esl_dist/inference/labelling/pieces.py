"""A pseudo-label job in pieces of a few pictures: what is predicted, and kept of it until the job is finished.

At each pixel that are a class, and the score that says whether to trust it. A killed job redoes only what is
unfinished; one that goes on with other settings keeps what does not depend on them.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esl_dist.adaptation.pseudo_labels import Trust, label_and_score
from esl_dist.checked import read_content
from esl_dist.data.images import Size, decode_label, encode_png, fitted_size
from esl_dist.data.loading import Batch, Samples
from esl_dist.data.shard_index import ShardEntry, ShardIndex, shard_from, shard_to
from esl_dist.data.shards import Members, ShardReader, write_shard
from esl_dist.data.workers import Workers
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.files import write_json
from esl_dist.inference.predictions import own_part, read_batches
from esl_dist.inference.predictor import Predictor
from esl_dist.made_with import changes, listed
from esl_dist.ranks.collectives import broadcast_flags, is_main, note_progress, print_on_main, wait_for_all
from esl_dist.runs.layout import UNFINISHED

JOB = "job.json"
PREDICTION = ("label.png", "level.png")
"""What a piece's tar has of each sample: predicted train ids (8 bits), and the levels of their scores (16 bits)."""
NOT_FOR_PREDICTIONS = {"bound", "compare_with_labels"}
"""Keys of what a job is made with that its predictions do not depend on."""
PIECE_SAMPLES = 8
"""Few, so that ranks wait little for the last piece; a tar and its entry a piece are written anyway."""


@dataclass(frozen=True)
class LabelJob:
    """What every part of a job needs.

    Attributes:
        predictor: the network and how it predicts.
        target: the pictures at the network's size; with labels to compare the pseudo-labels with, or without.
        frame: width and height of all pseudo-labels; None where each has those of its picture.
        trust: which score decides.
        made_with: everything that the pseudo-labels depend on, as their index keeps it.
        output: the folder of the pseudo-labels.
        workers: the processes that read, a rank.
    """

    predictor: Predictor
    target: Samples
    frame: Size | None
    trust: Trust
    made_with: Mapping[str, Any]
    output: Path
    workers: Workers

    @property
    def unfinished(self) -> Path:
        """The folder of what is kept until the job is finished."""
        return self.output / UNFINISHED


def pieces_by_shard(index: ShardIndex) -> list[list[range]]:
    """Cut each shard's samples into pieces: runs of positions, counted over all shards from 0."""
    pieces, first = [], 0
    for shard in index.shards:
        end = first + len(shard.samples)
        pieces.append([range(start, min(start + PIECE_SAMPLES, end)) for start in range(first, end, PIECE_SAMPLES)])
        first = end
    return pieces


def piece_name(piece: range) -> str:
    """Return the file name of a piece's tar."""
    return f"piece-{piece.start:09d}.tar"


def open_unfinished(folder: Path, made_with: Mapping[str, Any]) -> None:
    """Make the folder of an unfinished job; if it was begun with other settings, keep only what they do not affect."""
    if is_main():
        _remove_what_changes(folder, made_with)
        write_json(folder / JOB, made_with)
    wait_for_all()


def _remove_what_changes(folder: Path, made_with: Mapping[str, Any]) -> None:
    job = folder / JOB
    before = read_content(job, _remedy(folder)).mapping() if job.is_file() else {}
    changed = changes(before, made_with)
    stays = bool(before) and changed.keys() <= NOT_FOR_PREDICTIONS
    if before and changed:
        finished, fate = len(list(folder.glob("piece-*.tar.json"))), "stay" if stays else "are made anew"
        told = listed(changed.values())
        print_on_main(f"{folder.parent}: begun with another {told}; its {finished} finished pieces {fate}")
    if not stays and folder.exists():
        # First, so that after a kill in between the rest does not look like a job's folder.
        job.unlink(missing_ok=True)
        shutil.rmtree(folder)
    elif "bound" in changed:
        for entry in set(folder.glob("*.tar.json")) - set(folder.glob("piece-*")):
            entry.unlink()


def _remedy(folder: Path) -> str:
    return f"delete {folder} and start again"


def _entry_file(folder: Path, name: str) -> Path:
    # It is written after the tar, so it says that the tar is whole.
    return folder / f"{name}.json"


def write_tar(folder: Path, tar: Path, samples: Iterable[tuple[str, Members]]) -> None:
    """Write a tar, of a piece or of pseudo-labels, and its entry into `folder` after it."""
    write_json(_entry_file(folder, tar.name), shard_to(write_shard(tar, samples)))


def is_written(folder: Path, tar: Path) -> bool:
    """Say whether a tar is there and whole; its entry may outlive a tar that somebody deleted."""
    return _entry_file(folder, tar.name).is_file() and tar.is_file()


def read_entry(folder: Path, name: str, keys: Sequence[str], kinds: Sequence[str]) -> ShardEntry:
    """Read the entry of the tar `name` that this job, or an earlier start of it, has written.

    Raises:
        UserError: it is missing, damaged, or that of another tar, of other keys or of other extensions than `kinds`.
    """
    content = read_content(_entry_file(folder, name), _remedy(folder))
    entry = shard_from(content)
    if entry.name != name:
        content.at("name").refuse(repr(name))
    if [sample.key for sample in entry.samples] != list(keys):
        content.at("samples").refuse("the samples of the target")
    for sample, place in zip(entry.samples, content.at("samples").entries(), strict=True):
        if list(sample.members) != list(kinds):
            place.at("members").refuse(" and ".join(kinds))
    return entry


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
    images = batch["images"]
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


def read_piece(job: LabelJob, piece: range) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield key, predicted labels and levels (int32, of one shape) of every sample of a piece.

    Raises:
        UserError: its tar, or the entry of it, is not what was written.
    """
    name, keys = piece_name(piece), [job.target.images.key(position) for position in piece]
    entry = read_entry(job.unfinished, name, keys, PREDICTION)
    reader = ShardReader(job.unfinished, ShardIndex("", "", None, None, {}, {}, (entry,)))
    for number, key in enumerate(keys):
        damage = UserError(f"{job.unfinished / name}: damaged; {_remedy(job.unfinished)}")
        try:
            labels, levels = (decode_label(reader.read(number, kind)).astype(np.int32) for kind in PREDICTION)
        except (CorruptSampleError, ValueError) as error:
            raise damage from error
        too_large = job.frame is not None and (np.array(labels.shape) > job.frame[::-1]).any()
        if too_large or labels.shape != levels.shape or labels.max() >= len(job.made_with["classes"]):
            raise damage
        note_progress()
        yield key, torch.from_numpy(labels), torch.from_numpy(levels)
