"""Folders of shards with damage of a known place."""

import shutil
from pathlib import Path

from esl_dist.data.shards import open_shards


def copied_shards(town: Path, to: Path) -> Path:
    """Return a copy of the town's shards that a test may damage."""
    shutil.copytree(town, to)
    return to


def corrupt(folder: Path, position: int, kind: str = "image.png") -> str:
    """Flip a bit in the middle of a sample's member; returns how messages name the sample."""
    reader = open_shards(folder)
    shard, sample = next(
        (shard, sample)
        for number, (shard, sample) in enumerate((shard, one) for shard in reader.index.shards for one in shard.samples)
        if number == position
    )
    offset, count, _ = sample.members[kind]
    with open(folder / shard.name, "r+b") as file:
        file.seek(offset + count // 2)
        byte = file.read(1)[0]
        file.seek(offset + count // 2)
        file.write(bytes([byte ^ 0x10]))
    return f"{folder / shard.name}, sample {sample.key!r}"
