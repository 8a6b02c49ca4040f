"""The pixels of each raw id in a training's labels: from the index or, for shards of an older packing, counted once.

Then the ranks share the labels, and what they counted is kept beside the shards or, where nobody may write or they lie
far away, in each machine's cache folder.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from esl_dist.data.cache import Cache
from esl_dist.data.class_counts import FILE_NAME, count_ids, read_counts, write_counts
from esl_dist.data.labels import RAW_IDS
from esl_dist.data.loading import raw_label
from esl_dist.data.shard_index import IdPixels
from esl_dist.data.shards import ShardReader
from esl_dist.environment import LOCAL_RANK, MOST_RANKS, first_number
from esl_dist.errors import CorruptSampleError
from esl_dist.ranks.collectives import (
    is_main,
    note_progress,
    rank,
    require_same_on_ranks,
    sum_over_ranks,
    wait_for_all,
    warn,
    world_size,
)
from esl_dist.reporting.progress import progress

LARGEST_TABLE = 2**22
"""Numbers that the ranks add up at once."""


def label_pixels(shards: ShardReader, cache: Cache, skip_corrupt: bool) -> Sequence[IdPixels]:
    """Return the pixels of each raw id in each sample's label, the same on every rank.

    Args:
        shards: labelled ones.
        cache: in whose folder counts are kept that cannot lie beside the shards.
        skip_corrupt: whether a label that cannot be read counts as empty; it is told of.

    Raises:
        UserError: a label is corrupt, a file of counts is damaged, or ranks read different ones.
    """
    # Each machine may have shards of its own, which need not be packed by the same version.
    in_index = shards.index.label_pixels
    own = _kept(shards, cache) if in_index is None else list(in_index.values())
    has_all = int(sum_over_ranks(torch.tensor(own is not None, dtype=torch.int64))) == world_size()
    if own is not None and has_all:
        require_same_on_ranks(str(own), f"class counts of {shards.folder}")
        return own
    counted = _counted(shards, skip_corrupt)
    counts = _on_all_ranks(counted, len(shards))
    # A corrupt label may be put right: it is counted again.
    if all(counts):
        _keep(shards, counts, cache)
    return counts


def _files(shards: ShardReader, cache: Cache) -> list[Path]:
    in_cache = cache.folder / f"{shards.fingerprint()}.{FILE_NAME}"
    return [in_cache] if shards.far is not None else [Path(shards.folder) / FILE_NAME, in_cache]


def _kept(shards: ShardReader, cache: Cache) -> list[IdPixels] | None:
    found = (read_counts(shards, file) for file in _files(shards, cache))
    return next((counts for counts in found if counts is not None), None)


def _keep(shards: ShardReader, counts: Sequence[IdPixels], cache: Cache) -> None:
    *beside, in_cache = _files(shards, cache)
    if beside and is_main():
        # Data sets are often where one may not write.
        with suppress(OSError):
            write_counts(shards, counts, beside[0])
    wait_for_all()
    # Other machines may have shards of their own.
    if first_number(LOCAL_RANK, 0, MOST_RANKS) or shards.index.label_pixels is not None or _kept(shards, cache):
        return
    try:
        write_counts(shards, counts, in_cache, f".{rank()}")
    except OSError as error:
        warn(f"{in_cache}: cannot be written ({error.strerror}); the next start counts the labels again")


def _counted(shards: ShardReader, skip_corrupt: bool) -> dict[int, IdPixels]:
    """Count this rank's share of the labels, by their positions; the main rank shows how far it is."""
    counted: dict[int, IdPixels] = {}
    own: Iterable[int] = range(rank(), len(shards), world_size())
    if is_main():
        own = progress(own, len(range(0, len(shards), world_size())), f"{shards.folder}: counting classes")
    for position in own:
        try:
            counted[position] = count_ids(raw_label(shards, position))
        except CorruptSampleError as error:
            if not skip_corrupt:
                raise
            print(f"warning: {error}; its label is not counted", file=sys.stderr, flush=True)
        note_progress()
    return counted


def _on_all_ranks(counted: Mapping[int, IdPixels], samples: int) -> list[IdPixels]:
    """Return the counts of all samples, where each rank has those of some: as sums of tables, for they are few ids."""
    occurs = torch.zeros(RAW_IDS, dtype=torch.int64)
    for pixels in counted.values():
        occurs[list(pixels)] = 1
    ids = sum_over_ranks(occurs).nonzero().flatten()
    rows = max(1, LARGEST_TABLE // max(1, len(ids)))
    counts: list[IdPixels] = []
    for start in range(0, samples, rows):
        table = _table(counted, range(start, min(start + rows, samples)), ids)
        for row in sum_over_ranks(table, "the class counts of all ranks"):
            present = row.nonzero().flatten()
            counts.append(dict(zip(ids[present].tolist(), row[present].tolist(), strict=True)))
    return counts


def _table(counted: Mapping[int, IdPixels], positions: range, ids: Tensor) -> Tensor:
    """Return the pixels of each of `ids` in this rank's labels, int64 (positions, ids); 0 for those of other ranks."""
    table = torch.zeros(len(positions), len(ids), dtype=torch.int64)
    for row, position in zip(table, positions, strict=True):
        if pixels := counted.get(position):
            row[torch.searchsorted(ids, torch.tensor(list(pixels)))] = torch.tensor(list(pixels.values()))
    return table
