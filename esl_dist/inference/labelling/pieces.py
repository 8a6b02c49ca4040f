"""A pseudo-label job in pieces of a few pictures, and what is kept of them until the job is finished.

At each pixel that are a class, and the score that says whether to trust it. A killed job redoes only what is
unfinished; one that goes on with other settings keeps what does not depend on them.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.adaptation.pseudo_labels import Trust
from esl_dist.checked import read_content
from esl_dist.data.images import Size
from esl_dist.data.loading import Samples
from esl_dist.data.shard_index import ShardEntry, ShardIndex, shard_from, shard_to
from esl_dist.data.shards import Members, ShardReader, write_shard
from esl_dist.data.workers import Workers
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.files import write_json
from esl_dist.made_with import changes, listed
from esl_dist.prediction.predictor import Predictor
from esl_dist.ranks.collectives import broadcast_flags, is_main, note_progress, print_on_main, wait_for_all
from esl_dist.runs.layout import UNFINISHED

JOB = "job.json"
PREDICTION: dict[str, np.dtype[Any]] = {"label.npy": np.dtype(np.uint8), "level.npy": np.dtype("<u2")}
"""What a piece's tar has of each sample: predicted train ids, and the levels of their scores; not compressed, because
as PNG they would take half the room and ten times the work, and are removed with the job's end."""
PIECE_FORMAT = 2
"""Of what is unfinished; 1 had PNG files."""
NOT_FOR_PREDICTIONS = {"bound", "compare_with_labels"}
"""Keys of what a job is made with that its predictions do not depend on."""
PIECE_SAMPLES = 8
"""Few, so that ranks wait little for the last piece; a tar and its entry a piece are written anyway."""

Read = Callable[[], tuple[Tensor, Tensor]]
"""Reads predicted labels (uint8) and levels (uint16, of the same shape), in any thread."""


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
        made_with = {**made_with, "piece_format": PIECE_FORMAT}
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


def require_room(job: LabelJob, pictures: int) -> None:
    """Refuse a job whose pieces have no room on their disk; where pictures have sizes of their own, nobody knows.

    Args:
        job: its folder of what is unfinished is there.
        pictures: how many are still to be predicted, on all ranks.

    Raises:
        UserError: on every rank, if the disk has less room than the missing predictions take.
    """
    if job.frame is None:
        return
    disk, needed = shutil.disk_usage(job.unfinished), room_of_pieces(job.frame, pictures)
    # Some file systems far away say 0 of 0 bytes.
    if not all(broadcast_flags([disk.total == 0 or disk.free >= needed])):
        raise UserError(
            f"{job.output}: no room for the predictions of {pictures} pictures, which lie there until the job is "
            f"finished: {needed / 1e9:.1f} GB are needed and {disk.free / 1e9:.1f} GB free; make room, or choose an "
            "output on a larger disk"
        )


def room_of_pieces(frame: Size, pictures: int) -> int:
    """Return the bytes that the predictions of so many pictures of a size take until a job is finished."""
    return pictures * math.prod(frame) * sum(kind.itemsize for kind in PREDICTION.values())


def write_piece(job: LabelJob, piece: range, predictions: Iterable[Members]) -> None:
    """Write a piece's tar: of each of its samples what `encode_prediction` returns."""
    samples = zip((job.target.images.key(position) for position in piece), predictions, strict=True)
    write_tar(job.unfinished, job.unfinished / piece_name(piece), samples)


def encode_prediction(labels: Tensor, levels: Tensor) -> Members:
    """Return what a piece has of a sample: predicted labels (uint8) and levels (uint16), on the host."""
    return {kind: _encoded(one) for kind, one in zip(PREDICTION, (labels, levels), strict=True)}


def _encoded(tensor: Tensor) -> bytes:
    array, header = np.ascontiguousarray(tensor.numpy()), BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    # What np.save writes; it would copy the pixels three times, and hold up the other threads meanwhile.
    return b"".join((header.getvalue(), array.data))


def read_piece(job: LabelJob, piece: range) -> Iterator[tuple[int, Read]]:
    """Yield the position of every sample of a piece, with a function that reads what is predicted of it.

    Raises:
        UserError: its tar, or the entry of it, is not what was written; by the function, too.
    """
    name, keys = piece_name(piece), [job.target.images.key(position) for position in piece]
    entry = read_entry(job.unfinished, name, keys, list(PREDICTION))
    reader = ShardReader(job.unfinished, ShardIndex("", "", None, None, {}, {}, (entry,)))
    for number, position in enumerate(piece):
        note_progress()
        yield position, partial(_read, job, reader, number)


def _read(job: LabelJob, reader: ShardReader, number: int) -> tuple[Tensor, Tensor]:
    try:
        labels, levels = (_decoded(reader.read(number, kind), PREDICTION[kind]) for kind in PREDICTION)
        too_large = job.frame is not None and (np.array(labels.shape) > job.frame[::-1]).any()
        if too_large or labels.shape != levels.shape or labels.max() >= len(job.made_with["classes"]):
            raise ValueError("not the predictions of these pictures")
    except (CorruptSampleError, ValueError) as error:
        tar = reader.place(reader.shard(number))
        raise UserError(f"{tar}: damaged; {_remedy(job.unfinished)}") from error
    return torch.from_numpy(labels), torch.from_numpy(levels)


def _decoded(content: bytes, kind: np.dtype[Any]) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(BytesIO(content), allow_pickle=False)
    if array.dtype != kind or array.ndim != 2:
        raise ValueError(f"an array of {array.dtype} and shape {array.shape}; expected {kind}, height and width")
    return array
