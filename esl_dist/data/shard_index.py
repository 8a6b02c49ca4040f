"""The index of a folder of shards: what index.json holds, written and read by the same rules.

It gives what a stream of tars cannot: the number of samples, and any sample at once. shards/README.md describes it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esl_dist.checked import SHA256, Content, read_content
from esl_dist.data.images import LARGEST_PIXELS, Size
from esl_dist.data.labels import ClassSet, class_set_from, class_set_to
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_key, refuse_as_name, shortened, write_json

FORMAT = "esl-dist shards"
FORMAT_VERSION = 2
INDEX_NAME = "index.json"
REMEDY = "make the shards again"
LARGEST_SIDE = 2**20
"""Pixels of a side that OpenCV decodes."""
SOURCES = {"image", "label"}
"""Of which files of a sample an index notes digests."""


@dataclass(frozen=True)
class SampleEntry:
    """Where a sample lies in its shard: extension → (byte offset, byte count, CRC-32 of the bytes)."""

    key: str
    members: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class ShardEntry:
    """One tar file."""

    name: str
    size: int
    sha256: str
    samples: tuple[SampleEntry, ...]


@dataclass(frozen=True)
class ShardIndex:
    """What index.json holds. A size is None where the samples differ in it.

    `keep_aspect_ratio` says that pictures are fitted and padded where a size is asked for, not stretched.
    `sources` are the SHA-256 digests of the files that were packed: key → `image`, `label` → digest; None where nobody
    noted them. They tell whether a folder is current, and are no part of `ShardReader.fingerprint`.
    """

    dataset: str
    split: str
    image_size: Size | None
    label_size: Size | None
    class_sets: dict[str, ClassSet]
    made_with: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    keep_aspect_ratio: bool = False
    sources: dict[str, dict[str, str]] | None = None


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
    # As it will be read: lists in place of tuples.
    _index_from(Content(json.loads(json.dumps(content)), folder / INDEX_NAME, REMEDY))
    write_json(folder / INDEX_NAME, content, indent=None)


def shard_to(shard: ShardEntry) -> dict[str, Any]:
    """Return a shard's entry as plain dictionaries."""
    samples = [{"key": sample.key, "members": sample.members} for sample in shard.samples]
    return {
        "name": shard.name,
        "bytes": shard.size,
        "sha256": shard.sha256,
        "sample_count": len(shard.samples),
        "samples": samples,
    }


def shard_from(content: Content) -> ShardEntry:
    """Read a shard's entry back, the inverse of `shard_to`.

    Raises:
        UserError: something in it has another type or range, a name leads out of the folder, or members lie outside the
            file or over each other.
    """
    name, size = content.at("name").name(), content.at("bytes").whole_number()
    samples = tuple(_samples_from(content.at("samples"), size))
    _refuse_other_count(content.at("sample_count"), len(samples))
    _refuse_overlap(samples, content.at("samples"))
    return ShardEntry(name, size, content.at("sha256").sha256(), samples)


def _samples_from(content: Content, shard_size: int) -> Iterator[SampleEntry]:
    """Yield the samples of a list; the place of one is put together only to name what is wrong with it."""
    known: set[str] = set()
    for sample in content.entries():
        try:
            yield _sample_of(sample.value, shard_size, known)
        except (AttributeError, TypeError, ValueError, KeyError, UserError):
            yield _sample_from(sample, shard_size)


def _sample_of(value: Any, shard_size: int, known: set[str]) -> SampleEntry:
    """Return what `_sample_from` does, of plain values.

    Args:
        value: the sample's entry.
        shard_size: bytes of its shard.
        known: extensions that were checked; those of `value` are added.

    Raises:
        AttributeError, TypeError, ValueError, KeyError, UserError: it does not fit.
    """
    key, listed = value["key"], value["members"]
    refuse_as_key(key, "")
    if "." in key or not listed:
        raise ValueError
    members: dict[str, tuple[int, int, int]] = {}
    for extension, place in listed.items():
        if extension not in known:
            refuse_as_name(extension, "")
            known.add(extension)
        offset, count, checksum = place
        if not (
            type(place) is list
            and type(offset) is type(count) is type(checksum) is int
            and offset >= 0 <= count
            and offset + count <= shard_size
            and 0 <= checksum < 2**32
        ):
            raise ValueError
        members[extension] = (offset, count, checksum)
    return SampleEntry(key, members)


def _sample_from(content: Content, shard_size: int) -> SampleEntry:
    key = content.at("key").sample_key()
    if "." in key:
        content.at("key").refuse("a key without a dot, where WebDataset would cut it")
    members: dict[str, tuple[int, int, int]] = {}
    listed = content.at("members")
    if not isinstance(listed.value, dict) or not listed.value:
        listed.refuse("its files by extension")
    for extension in listed.value:
        refuse_as_name(extension, f"{listed.place()}: extension")
        place = listed.at(extension)
        offset, count, checksum = place.whole_numbers(3)
        if offset + count > shard_size or checksum >= 2**32:
            place.refuse(f"an offset and a number of bytes inside the shard's {shard_size}, and a CRC-32")
        members[extension] = (offset, count, checksum)
    return SampleEntry(key, members)


def _refuse_other_count(content: Content, count: int) -> None:
    if content.whole_number() != count:
        content.refuse(f"{count}, the number of samples that are listed")


def _refuse_overlap(samples: Sequence[SampleEntry], content: Content) -> None:
    places = sorted((offset, count, sample.key) for sample in samples for offset, count, _ in sample.members.values())
    for (offset, count, key), (following, _, other) in itertools.pairwise(places):
        if offset + count > following:
            raise UserError(f"{content.place()}: files of {key!r} and {other!r} overlap; {REMEDY}")


def read_index(folder: Path) -> ShardIndex:
    """Read and check a folder's index.json; keys that are not in shards/README.md are passed over.

    Raises:
        UserError: it is missing, damaged or of another format version; the message names file and key.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise UserError(f"{folder}: no {INDEX_NAME}, so no complete folder of shards; make it with shards/prepare.py")
    return _index_from(read_content(path, REMEDY))


def _index_from(content: Content) -> ShardIndex:
    path = content.file
    if not isinstance(content.value, dict) or content.value.get("format") != FORMAT:
        raise UserError(f"{path}: not an index of {FORMAT}; expected what shards/prepare.py writes")
    version = content.value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise UserError(f"{path}: format version {shortened(version)}, this program reads {FORMAT_VERSION}; pack again")
    keep_aspect_ratio = content.get("keep_aspect_ratio")
    shards = tuple(shard_from(shard) for shard in content.at("shards").entries())
    samples = sum(len(shard.samples) for shard in shards)
    _refuse_other_count(content.at("samples"), samples)
    _refuse_twice("shard", (shard.name for shard in shards), path)
    _refuse_twice("key", (sample.key for shard in shards for sample in shard.samples), path)
    return ShardIndex(
        dataset=content.at("dataset").name(),
        split=content.at("split").name(),
        image_size=_size(content.at("image_size")),
        label_size=_size(content.at("label_size")),
        class_sets={name: class_set_from(item.value, item.place()) for name, item in content.at("class_sets").items()},
        made_with=content.at("made_with").mapping(),
        shards=shards,
        keep_aspect_ratio=keep_aspect_ratio is not None and keep_aspect_ratio.truth(),
        sources=_sources(content.get("sources")),
    )


def _refuse_twice(what: str, names: Iterable[str], path: Path) -> None:
    [(name, count)] = Counter(names).most_common(1) or [("", 1)]
    if count > 1:
        raise UserError(f"{path}: the {what} {name!r} is there {count} times; {REMEDY}")


def _size(content: Content) -> Size | None:
    if content.value is None:
        return None
    width, height = content.whole_numbers(2, 1, LARGEST_SIDE)
    if width * height > LARGEST_PIXELS:
        content.refuse(f"width and height of at most {LARGEST_PIXELS} pixels")
    return width, height


def _sources(content: Content | None) -> dict[str, dict[str, str]] | None:
    if content is None or content.value is None:
        return None
    if not isinstance(content.value, dict):
        content.refuse("digests by key")
    for key, digests in content.value.items():
        if not _are_digests(digests):
            _refuse_digests(content.at(key))
        try:
            refuse_as_key(key, "")
        except UserError:
            content.inner(key, key).sample_key()
    sources: dict[str, dict[str, str]] = content.value
    return sources


def _are_digests(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "image" in value
        and value.keys() <= SOURCES
        and all(isinstance(digest, str) and SHA256.fullmatch(digest) for digest in value.values())
    )


def _refuse_digests(content: Content) -> None:
    content.at("image")
    for _, digest in content.items():
        digest.sha256()
