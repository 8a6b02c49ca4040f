"""The index of a folder of shards: what index.json holds, written and read by the same rules.

It gives what a stream of tars cannot: the number of samples, and any sample at once. shards/README.md describes it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from esl_dist.checked import Content, Name, SampleKey, Sha256, read, read_content, read_key, read_sha256
from esl_dist.data.images import LARGEST_PIXELS, LONGEST_SIDE, Size
from esl_dist.data.labels import RAW_IDS, ClassSet, class_set_from, class_set_to
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.urls import is_url

FORMAT = "esl-dist shards"
FORMAT_VERSION = 2
INDEX_NAME = "index.json"
REMEDY = "make the shards again"


def key_without_dot(content: Content) -> str:
    """Read a sample's key as it stands in a shard."""
    if "." in read_key(content):
        content.refuse("a key without a dot, where WebDataset would cut it")
    return content.text()


def place_in_shard(content: Content) -> tuple[int, int, int]:
    """Read byte offset, byte count and CRC-32 of the bytes of a sample's file."""
    offset, count, checksum = content.whole_numbers(3)
    if checksum >= 2**32:
        content.refuse("an offset, a number of bytes and a CRC-32")
    return offset, count, checksum


def size_of_pictures(content: Content) -> Size:
    """Read width and height in pixels."""
    width, height = content.whole_numbers(2, 1, LONGEST_SIDE)
    if width * height > LARGEST_PIXELS:
        content.refuse(f"width and height of at most {LARGEST_PIXELS} pixels")
    return width, height


def digests_of_sources(content: Content) -> dict[str, str]:
    """Read the SHA-256 digests of the files that a sample was made of: of its picture, and maybe of its label."""
    content.at("image")
    return {kind: read_sha256(digest) for kind, digest in content.items()}


IdPixels = dict[int, int]
"""Raw ids of a label → pixels of each; those that occur, in ascending order."""


def id_pixels(content: Content) -> IdPixels:
    """Read the pixels of a label's raw ids from a list: id, pixels, id, pixels, …"""
    numbers = content.whole_numbers(len(content.value) if isinstance(content.value, list) else 0)
    ids, pixels = numbers[::2], numbers[1::2]
    is_ascending = all(one < following for one, following in itertools.pairwise([-1, *ids, RAW_IDS]))
    if len(ids) != len(pixels) or not is_ascending or 0 in pixels:
        content.refuse("raw ids in ascending order, each with its pixels after it")
    return dict(zip(ids, pixels, strict=True))


def id_pixels_to(pixels: IdPixels) -> list[int]:
    """Return the pixels of a label's raw ids as a list, the inverse of `id_pixels`."""
    return list(itertools.chain.from_iterable(pixels.items()))


@dataclass(frozen=True)
class SampleEntry:
    """Where a sample lies in its shard: extension → (byte offset, byte count, CRC-32 of the bytes)."""

    key: Annotated[str, key_without_dot]
    members: dict[Name, Annotated[tuple[int, int, int], place_in_shard]]


@dataclass(frozen=True)
class ShardEntry:
    """One tar file; `size` are its bytes."""

    name: Name
    size: int = field(metadata={"key": "bytes"})
    sha256: Sha256
    samples: tuple[SampleEntry, ...]


def shard_to(shard: ShardEntry) -> dict[str, Any]:
    """Return a shard's entry as plain dictionaries."""
    return {
        "name": shard.name,
        "bytes": shard.size,
        "sha256": shard.sha256,
        "sample_count": len(shard.samples),
        "samples": [vars(sample) for sample in shard.samples],
    }


def shard_from(content: Content) -> ShardEntry:
    """Read a shard's entry back, the inverse of `shard_to`.

    Raises:
        UserError: something in it has another type or range, a name leads out of the folder, or members lie outside the
            file or over each other.
    """
    shard = read(content, ShardEntry)
    _refuse_other_count(content.at("sample_count"), len(shard.samples))
    _refuse_misplaced(shard, content.at("samples"))
    return shard


def _refuse_other_count(content: Content, count: int) -> None:
    if content.whole_number() != count:
        content.refuse(f"{count}, the number of samples that are listed")


def _refuse_misplaced(shard: ShardEntry, content: Content) -> None:
    for number, sample in enumerate(shard.samples):
        if not sample.members:
            content.entries()[number].at("members").refuse("its files by extension")
        for extension, (offset, count, _) in sample.members.items():
            if offset + count > shard.size:
                place = content.entries()[number].at("members").at(extension)
                place.refuse(f"an offset and a number of bytes inside the shard's {shard.size}")
    places = sorted((offset, count, one.key) for one in shard.samples for offset, count, _ in one.members.values())
    for (offset, count, key), (following, _, other) in itertools.pairwise(places):
        if offset + count > following:
            raise UserError(f"{content.place()}: files of {key!r} and {other!r} overlap; {REMEDY}")


@dataclass(frozen=True)
class ShardIndex:
    """What index.json holds. A size is None where the samples differ in it.

    `keep_aspect_ratio` says that pictures are fitted and padded where a size is asked for, not stretched.
    `sources` are the SHA-256 digests of the files that were packed: key → `image`, `label` → digest; None where nobody
    noted them. They tell whether a folder is current, and are no part of `ShardReader.fingerprint`.
    `label_pixels` are the pixels of each raw id in the labels as they are packed, by the samples' keys; None where
    nobody counted them. No part of it, either.
    """

    dataset: Name
    split: Name
    image_size: Annotated[Size, size_of_pictures] | None
    label_size: Annotated[Size, size_of_pictures] | None
    class_sets: dict[str, Annotated[ClassSet, class_set_from]]
    made_with: dict[str, Any]
    shards: tuple[Annotated[ShardEntry, shard_from], ...]
    keep_aspect_ratio: bool = False
    sources: dict[SampleKey, Annotated[dict[str, str], digests_of_sources]] | None = None
    label_pixels: dict[SampleKey, Annotated[IdPixels, id_pixels]] | None = None


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `index` as the folder's index.json; its presence says that the folder is complete.

    Raises:
        UserError: it says what `read_index` would refuse; nothing is written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dataset": index.dataset,
        "split": index.split,
        "samples": sum(len(shard.samples) for shard in index.shards),
        "image_size": index.image_size,
        "label_size": index.label_size,
        "keep_aspect_ratio": index.keep_aspect_ratio,
        "made_with": index.made_with,
        "class_sets": {name: class_set_to(classes) for name, classes in index.class_sets.items()},
        "shards": [shard_to(shard) for shard in index.shards],
    }
    if index.sources is not None:
        content["sources"] = index.sources
    if index.label_pixels is not None:
        content["label_pixels"] = {key: id_pixels_to(pixels) for key, pixels in index.label_pixels.items()}
    # As it will be read: lists in place of tuples.
    index_from(Content(json.loads(json.dumps(content)), folder / INDEX_NAME, REMEDY))
    write_json(folder / INDEX_NAME, content, indent=None)


def refuse_missing_shards(place: str | Path, maker: str = "esl-dist pack") -> None:
    """Make sure that there is a folder of shards with an index, whatever that says; far away, nobody looks yet.

    Args:
        place: the folder, or a URL.
        maker: the command that makes what is missing.

    Raises:
        UserError: there is none.
    """
    if is_url(str(place)):
        return
    if not (folder := Path(place)).is_dir():
        raise UserError(f"{folder}: no such folder of shards; make it with {maker}")
    _refuse_missing_index(folder, maker)


def _refuse_missing_index(folder: Path, maker: str = "esl-dist pack") -> None:
    if not (folder / INDEX_NAME).is_file():
        raise UserError(f"{folder}: no {INDEX_NAME}, so no complete folder of shards; make it with {maker}")


def read_index(folder: Path) -> ShardIndex:
    """Read and check a folder's index.json; keys that are not in shards/README.md are passed over.

    Raises:
        UserError: it is missing, damaged or of another format version; the message names file and key.
    """
    _refuse_missing_index(folder)
    return index_from(read_content(folder / INDEX_NAME, REMEDY))


def index_from(content: Content) -> ShardIndex:
    """Check what an index.json holds; raises as `read_index`."""
    content.version_of(FORMAT, [FORMAT_VERSION])
    index = read(content, ShardIndex)
    _refuse_other_count(content.at("samples"), sum(len(shard.samples) for shard in index.shards))
    _refuse_twice("shard", (shard.name for shard in index.shards), content)
    keys = [sample.key for shard in index.shards for sample in shard.samples]
    _refuse_twice("key", keys, content)
    if index.label_pixels is not None and list(index.label_pixels) != keys:
        content.at("label_pixels").refuse("all samples in their order")
    return index


def _refuse_twice(what: str, names: Iterable[str], content: Content) -> None:
    [(name, count)] = Counter(names).most_common(1) or [("", 1)]
    if count > 1:
        raise UserError(f"{content.file}: the {what} {name!r} is there {count} times; {REMEDY}")
