"""How many pixels of which class a label has: counted when it is packed or, for shards of an older packing, once.

Raw ids are counted, so that one count serves every class set of the shards. Counts are no part of what runs know shards
by; those of older shards are kept in a file of their own, which names the shards by their fingerprint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from esl_dist.checked import SampleKey, Sha256, read, read_content
from esl_dist.data.images import Label
from esl_dist.data.labels import IGNORE_INDEX, ClassSet, train_id_table
from esl_dist.data.shard_index import IdPixels, id_pixels, id_pixels_to
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.files import write_json

FILE_NAME = "class_counts.json"
FORMAT, FORMAT_VERSION = "esl-dist class counts", 1

PIXELS_AT_ONCE = 2**20
"""NumPy counts 64-bit numbers: a part of a label at a time, or a large one would take eight times its size."""


@dataclass(frozen=True)
class _Kept:
    """What a file of counts holds: the fingerprint of the shards; by sample, the pixels of its label's raw ids."""

    fingerprint: Sha256
    label_pixels: dict[SampleKey, Annotated[IdPixels, id_pixels]]


def count_ids(label: Label) -> IdPixels:
    """Return the pixels of each raw id in a label of shape (height, width), those of ids that occur, in their order."""
    counts = np.zeros(np.iinfo(label.dtype).max + 1, np.int64)
    rows = max(1, PIXELS_AT_ONCE // label.shape[1])
    for start in range(0, len(label), rows):
        counts += np.bincount(label[start : start + rows].ravel(), minlength=len(counts))
    return {int(one): int(counts[one]) for one in np.flatnonzero(counts)}


def pixels_of_classes(counts: Sequence[IdPixels], classes: ClassSet) -> NDArray[np.int64]:
    """Return the pixels of each class in each label, int64 (samples, classes); ids of no class are not counted."""
    table = train_id_table(classes)
    pixels = np.zeros((len(counts), IGNORE_INDEX + 1), np.int64)
    for row, of_label in zip(pixels, counts, strict=True):
        np.add.at(row, table[list(of_label)], list(of_label.values()))
    return pixels[:, : len(classes)]


def read_counts(shards: ShardReader, file: Path) -> list[IdPixels] | None:
    """Return the counts of each sample that a file keeps; None: there is no such file, or it is of other shards.

    Raises:
        UserError: it is damaged.
    """
    if not file.exists():
        return None
    content = read_content(file, "delete it to have the labels counted again")
    content.version_of(FORMAT, [FORMAT_VERSION])
    kept = read(content, _Kept)
    if kept.fingerprint != shards.fingerprint():
        return None
    if list(kept.label_pixels) != list(shards.keys()):
        raise UserError(f"{file}: does not have the samples of the shards; delete it to have the labels counted again")
    return list(kept.label_pixels.values())


def write_counts(shards: ShardReader, counts: Sequence[IdPixels], file: Path, by: str = "") -> None:
    """Write the counts of each sample, whole or not at all; `by` as of `files.whole_file`.

    Raises:
        OSError: the file cannot be written.
    """
    pixels = {key: id_pixels_to(of_label) for key, of_label in zip(shards.keys(), counts, strict=True)}
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": shards.fingerprint()}
    write_json(file, {**content, "label_pixels": pixels}, None, by)
