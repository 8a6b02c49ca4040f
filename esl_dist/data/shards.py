"""The shard format: a folder of plain WebDataset tars with an index of byte offsets beside them.

`webdataset.WebDataset` reads the tars as they are. The index gives what a stream cannot: the number of samples, any
sample at once, and with that exact epochs and restarts inside one. shards/README.md describes the format.

Nothing read here is unpickled or executed; no name or key may lead out of its folder.
"""

import errno
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from esl_dist.data.cache import Cache
from esl_dist.data.far_shards import FarShards, open_far_shards
from esl_dist.data.labels import ClassSet, class_set_to
from esl_dist.data.shard_index import (
    INDEX_NAME,
    SampleEntry,
    ShardEntry,
    ShardIndex,
    read_index,
    refuse_missing_shards,
    shard_to,
)
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.files import refuse_as_key, refuse_as_name, sha256_of_file, whole_file
from esl_dist.machine import shortage
from esl_dist.urls import is_url

OPEN_SHARDS = 16
"""Files that a reader keeps open. Samples come from a few shards at a time; a process may often open no more than 1,024
files, and a large data set has more shards."""

COPIED_BYTES = 2**22
"""At once into a tar; the library's own 16 KB would make a system call each."""

Members = Mapping[str, bytes]
"""A sample's files: extension (`image.png`, `label.png`, …) → bytes."""


def shard_name(position: int) -> str:
    """Return the file name of a folder's shard number `position`, counted from 0."""
    return f"shard-{position:06d}.tar"


def write_shard(path: Path, samples: Iterable[tuple[str, Members]]) -> ShardEntry:
    """Write one tar, whole or not at all; the same samples give the same bytes.

    Args:
        path: the tar's final place.
        samples: key and files of each sample; a key may hold folders but no dot (WebDataset cuts names at the first).

    Raises:
        UserError: a key or an extension that an unpacker would follow out of its folder, or a key twice.
    """
    entries: list[SampleEntry] = []
    known: set[str] = set()
    form: Any = {"format": tarfile.PAX_FORMAT, "copybufsize": COPIED_BYTES}
    with whole_file(path) as file, tarfile.open(fileobj=file, mode="w", **form) as tar:
        for key, members in samples:
            refuse_as_key(key, f"{path}: key")
            if "." in key or key in known:
                raise UserError(f"{path}: key {key!r} is impossible: expected one without a dot, and no two the same")
            known.add(key)
            places: dict[str, tuple[int, int, int]] = {}
            for extension, content in members.items():
                refuse_as_name(extension, f"{path}: extension of {key!r}")
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size, header.mode = len(content), 0o644
                tar.addfile(header, io.BytesIO(content))
                places[extension] = (tar.offset - _whole_blocks(len(content)), len(content), zlib.crc32(content))
            entries.append(SampleEntry(key, places))
    return ShardEntry(path.name, path.stat().st_size, sha256_of_file(path), tuple(entries))


def packed_size(key: str, members: Members) -> int:
    """Return the bytes that a sample takes in a tar: headers, longer for long names, and contents in whole blocks."""
    return sum(
        len(tarfile.TarInfo(f"{key}.{extension}").tobuf(tarfile.PAX_FORMAT)) + _whole_blocks(len(content))
        for extension, content in members.items()
    )


def _whole_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@dataclass
class _OpenFile:
    """A file that is closed with the last reference to it."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


def _opened(path: Path) -> _OpenFile:
    # A pipe in its place, opened otherwise, would be waited for.
    return _OpenFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


@dataclass
class ShardReader:
    """Reads any sample of a folder of shards, in any order, from any process.

    Attributes:
        folder: where the shards lie: a folder here or, as text, the URL of one far away.
        index: their index.
        far: where to get those that lie far away; None: they lie here.
    """

    folder: Path | str
    index: ShardIndex
    far: FarShards | None = None

    def __post_init__(self) -> None:
        """Number the samples."""
        self._places = [(shard, sample) for shard in self.index.shards for sample in shard.samples]
        self._opened = lru_cache(OPEN_SHARDS)(_opened)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave open files behind when a copy goes to another process."""
        return ShardReader, (self.folder, self.index, self.far)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._places)

    def key(self, position: int) -> str:
        """Return the key of the sample at `position`, counted over all shards from 0."""
        return self._places[position][1].key

    def keys(self) -> Iterator[str]:
        """Yield all keys in the order of the shards."""
        return (sample.key for _, sample in self._places)

    def where(self, position: int) -> str:
        """Name a sample in messages: folder, shard and key."""
        shard, sample = self._places[position]
        return f"{self.place(shard)}, sample {sample.key!r}"

    def place(self, shard: ShardEntry) -> str:
        """Name a shard in messages."""
        return f"{self.folder}/{shard.name}"

    def shard(self, position: int) -> ShardEntry:
        """Return the shard that holds the sample at `position`."""
        return self._places[position][0]

    def read(self, position: int, kind: str) -> bytes:
        """Return the bytes of a sample's member whose extension is `kind` or starts with `kind` and a dot.

        Raises:
            CorruptSampleError: its bytes are not those that were packed, or its shard is not there.
            UserError: the sample has no such member, or the shard cannot be read though it may be whole.
        """
        shard, sample = self._places[position]
        extension = next((name for name in sample.members if name == kind or name.startswith(f"{kind}.")), None)
        if extension is None:
            raise UserError(f"{self.where(position)}: no {kind}; it has {', '.join(sample.members)}")
        offset, count, checksum = sample.members[extension]
        for is_last in (self.far is None, True):
            content = self._bytes(shard, offset, count, self.where(position))
            if zlib.crc32(content) == checksum:
                return content
            if is_last or self.far is None:
                break
            # What was whole when it was fetched was damaged here.
            self.far.forget(shard)
        raise CorruptSampleError(
            f"{self.where(position)}: the bytes of {extension} are not the packed ones; pack it again"
        )

    def _bytes(self, shard: ShardEntry, offset: int, count: int, where: str) -> bytes:
        try:
            if self.far is not None:
                # Not kept open: it would take room on the disk after it has gone from the cache.
                opened = _OpenFile(self.far.opened(shard, where))
            else:
                opened = self._open(Path(self.folder) / shard.name)
            return os.pread(opened.descriptor, count, offset)
        except FileNotFoundError as error:
            raise CorruptSampleError(f"{where}: the shard is missing; pack it again") from error
        except OSError as error:
            raise UserError(
                f"{where}: cannot be read ({shortage(error) or error.strerror}); the shard may "
                "be intact: look for the cause on this machine, then start again"
            ) from error

    def _open(self, path: Path) -> _OpenFile:
        try:
            return self._opened(path)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # Those that are kept are perhaps more than may be open.
            self._opened.cache_clear()
            return self._opened(path)

    def fingerprint(self) -> str:
        """Return a SHA-256 over all entries and class sets: equal means the same samples, in the same order."""
        classes = {name: class_set_to(item) for name, item in self.index.class_sets.items()}
        digest = hashlib.sha256(json.dumps([classes, self.index.keep_aspect_ratio]).encode())
        for shard in self.index.shards:
            digest.update(json.dumps(shard_to(shard)).encode())
        return digest.hexdigest()


def open_shards(folder: str | Path, whole: bool = True, cache: Cache | None = None) -> ShardReader:
    """Open a folder of shards, here or far away.

    Args:
        folder: where they lie, a path or a URL.
        whole: whether every shard has to be there with its size; its bytes are checked by `verify`. Of those far away
            only the first and the last are asked for, and each is checked when it is fetched.
        cache: where those from far away are kept; a URL needs one.

    Raises:
        UserError: the folder is missing, incomplete or without samples, its index is damaged or, if it has to be
            `whole`, a shard is missing or of another size; the message names the shard and the first sample that is
            lost.
    """
    reader = _opened_reader(folder, cache)
    if len(reader) == 0:
        raise UserError(f"{folder}: its {INDEX_NAME} lists no samples; make the shards again")
    if whole:
        for shard in broken_shards(reader):
            raise UserError(f"{shard.damage}; pack the data set again")
    return reader


def _opened_reader(folder: str | Path, cache: Cache | None) -> ShardReader:
    if is_url(str(folder)):
        if cache is None:
            raise ValueError(f"{folder}: is far away, and no cache is given")
        url = str(folder).rstrip("/")
        far, index = open_far_shards(url, cache)
        return ShardReader(url, index, far)
    path = Path(folder)
    refuse_missing_shards(path)
    return ShardReader(path, read_index(path))


class BrokenShard(NamedTuple):
    """A shard that is missing or has another size than its index says.

    `damage` says what was found where, and which samples it costs; `lost`, how many lie, wholly or in part, in what is
    missing.
    """

    damage: str
    lost: int


def broken_shards(reader: ShardReader) -> Iterator[BrokenShard]:
    """Yield the shards that are not there with their size, in the order of the index; far away, of first and last."""
    shards = reader.index.shards
    for shard in shards if reader.far is None else (*shards[:1], *shards[1:][-1:]):
        size = _size(reader, shard)
        if size == shard.size:
            continue
        lost = [
            sample.key
            for sample in shard.samples
            if size is None or any(offset + count > size for offset, count, _ in sample.members.values())
        ]
        found = "is missing" if size is None else f"has {size} bytes"
        first = f", {lost[0]!r} first" if lost else ""
        damage = f"{reader.place(shard)}: {found}, the index says {shard.size}; "
        yield BrokenShard(f"{damage}{len(lost)} of its {len(shard.samples)} samples are lost{first}", len(lost))


def _size(reader: ShardReader, shard: ShardEntry) -> int | None:
    """Return a shard's bytes; None: it is not there."""
    if reader.far is not None:
        return reader.far.size(shard)
    path = Path(reader.folder) / shard.name
    return path.stat().st_size if path.is_file() else None


def verify(reader: ShardReader) -> None:
    """Compare every shard's bytes with the checksum in the index, its members with those of the index; reads all once.

    Raises:
        UserError: a shard was changed after it was packed, or its index is that of another.
    """
    for shard in reader.index.shards:
        path = Path(reader.folder) / shard.name
        if sha256_of_file(path) != shard.sha256:
            raise UserError(f"{path}: its bytes are not those that were packed (checksum differs); pack it again")
        listed = {
            (f"{sample.key}.{extension}", offset, count)
            for sample in shard.samples
            for extension, (offset, count, _) in sample.members.items()
        }
        try:
            with tarfile.open(path) as tar:
                found = {(member.name, member.offset_data, member.size) for member in tar if member.isfile()}
        except tarfile.TarError as error:
            raise UserError(f"{path}: is not a readable tar ({error}); pack it again") from error
        if found != listed:
            raise UserError(f"{path}: its members are not those of {INDEX_NAME}; pack it again")


def choose_classes(shards: ShardReader, name: str | None) -> tuple[str, ClassSet]:
    """Return the class set `name` of the shards, or their first one, with its name.

    Raises:
        UserError: there is none of that name.
    """
    known = shards.index.class_sets
    if not known:
        raise UserError(f"{shards.folder}: its pictures have no labels, hence no class set; expected labelled shards")
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise UserError(f"{shards.folder}: no class set {chosen!r}; it has {', '.join(known)}")
    return chosen, known[chosen]
