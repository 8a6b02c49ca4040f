"""What an unfinished pseudo-label job keeps beside its output, and when it may go on with it.

A job that was killed redoes only what is unfinished; one with other settings keeps what does not depend on them.
"""

import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esl_dist.checked import read_content
from esl_dist.data.images import decode_label
from esl_dist.data.shard_index import ShardEntry, shard_from, shard_to
from esl_dist.data.shards import Members, write_shard
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.made_with import changed_keys, told_changes
from esl_dist.ranks.collectives import is_main, print_on_main, wait_for_all

SCRATCH = ".scratch"
JOB = "job.json"
PREDICTION = ("label.png", "level.png")
"""What a scratch tar has of each sample: predicted train ids (8 bits), and the levels of their scores (16 bits)."""
NOT_FOR_PREDICTIONS = {"bound", "compare_with_labels"}
"""Keys of what a job is made with that its predictions do not depend on."""


def open_scratch(output: Path, made_with: dict[str, Any]) -> Path:
    """Return the scratch folder on every rank; of a job with other settings, only predictions that are the same stay.

    Args:
        output: the folder of the pseudo-labels.
        made_with: everything that they depend on.
    """
    scratch = output / SCRATCH
    if is_main():
        _clear_scratch(scratch, made_with)
        write_json(scratch / JOB, made_with)
    wait_for_all()
    return scratch


def write_tar(scratch: Path, tar: Path, samples: Iterable[tuple[str, Members]]) -> None:
    """Write a tar, and its entry after it."""
    write_json(_entry_file(scratch, tar.name), shard_to(write_shard(tar, samples)))


def is_written(scratch: Path, tar: Path) -> bool:
    """Say whether a tar is there, and whole; an entry alone may be left of what somebody deleted."""
    return _entry_file(scratch, tar.name).is_file() and tar.is_file()


def _entry_file(scratch: Path, name: str) -> Path:
    """Return where the entry of a tar is kept; it is written after the tar, so it says that the tar is whole."""
    return scratch / f"{name}.json"


def read_entry(scratch: Path, name: str, keys: Sequence[str], kinds: Sequence[str]) -> ShardEntry:
    """Read the entry of a tar that this job, or an earlier start of it, has written.

    Args:
        scratch: the job's scratch folder.
        name: the tar's.
        keys: of its samples, in their order.
        kinds: extensions that each of them has.

    Raises:
        UserError: it is missing, damaged, or that of another tar.
    """
    content = read_content(_entry_file(scratch, name), f"delete {scratch} and start again")
    entry = shard_from(content)
    if entry.name != name:
        content.at("name").refuse(repr(name))
    if [sample.key for sample in entry.samples] != list(keys):
        content.at("samples").refuse("the samples of the target")
    for sample, place in zip(entry.samples, content.at("samples").entries(), strict=True):
        if list(sample.members) != list(kinds):
            place.at("members").refuse(" and ".join(kinds))
    return entry


def read_predictions(
    scratch: Path, name: str, keys: Sequence[str], classes: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield key, predicted labels and levels (int32, of one shape) of every sample of a scratch tar.

    Args:
        scratch: the job's scratch folder.
        name: the tar's.
        keys: of its samples, in their order.
        classes: number of classes.

    Raises:
        UserError: the tar or its entry is not what was written.
    """
    damaged = f"{scratch / name}: damaged; delete {scratch} and start again"
    with open(scratch / name, "rb") as file:
        for sample in read_entry(scratch, name, keys, PREDICTION).samples:
            images = []
            for kind in PREDICTION:
                offset, count, checksum = sample.members[kind]
                file.seek(offset)
                content = file.read(count)
                if zlib.crc32(content) != checksum:
                    raise UserError(damaged)
                try:
                    images.append(torch.from_numpy(decode_label(content).astype(np.int32)))
                except ValueError as error:
                    raise UserError(damaged) from error
            labels, levels = images
            if labels.shape != levels.shape or int(labels.max()) >= classes:
                raise UserError(damaged)
            yield sample.key, labels, levels


def _clear_scratch(scratch: Path, made_with: dict[str, Any]) -> None:
    job = scratch / JOB
    made_before = read_content(job, f"delete {scratch} and start again").mapping() if job.is_file() else {}
    changed = changed_keys(made_before, made_with) if made_before else list(made_with)
    if made_before and changed:
        pieces = len(list(scratch.glob("piece-*.tar.json")))
        fate = "stay" if set(changed) <= NOT_FOR_PREDICTIONS else "are made anew"
        others = told_changes(changed, made_before, made_with)
        print_on_main(f"{scratch.parent}: begun with another {others}; its {pieces} finished pieces {fate}")
    if set(changed) <= NOT_FOR_PREDICTIONS:
        for entry in scratch.glob("*.tar.json") if "bound" in changed else []:
            if not entry.name.startswith("piece-"):
                entry.unlink()
    elif scratch.exists():
        # First, so that what a kill in between leaves does not look like a job's folder.
        job.unlink(missing_ok=True)
        shutil.rmtree(scratch)
