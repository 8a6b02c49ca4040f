"""A folder of shards far away: its index is held to what it was at the start, its shards are files of the cache.

A shard is known by the SHA-256 in the index, so what is read is what was packed, or is refused: the same order, the
same samples and the same bits as from a folder on this machine. Every process that needs a shard may fetch it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from esl_dist.checked import Content
from esl_dist.data import cache as cached
from esl_dist.data.cache import Cache
from esl_dist.data.remote import ATTEMPTS, PART_BYTES, Version, part_of, tell, version_of, whole_of
from esl_dist.data.shard_index import INDEX_NAME, REMEDY, ShardEntry, ShardIndex, index_from
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.files import parsed_json
from esl_dist.urls import file_of

FETCHES = 2
"""Of a shard whose bytes are not those of the index, before it is called damaged."""


DIGEST_BYTES = 32
"""Of the SHA-256 in front of an index in the cache."""


class _ReplacedError(Exception):
    """The index is another one than when its version was asked for."""


@dataclass
class FarShards:
    """Where shards come from, and which of them proved to be lost.

    Attributes:
        url: of the folder.
        cache: where they are kept.
        index_digest: SHA-256 of the index's bytes.
        index_version: what the server said of the index when it was last seen to have these bytes.
        lost: digest of a shard → why it cannot be had.
    """

    url: str
    cache: Cache
    index_digest: str
    index_version: Version
    lost: dict[str, str] = field(default_factory=dict)

    def opened(self, shard: ShardEntry, where: str) -> int:
        """Return a descriptor of a shard, fetched if need be; close it.

        Args:
            shard: its entry in the index.
            where: what is read of it, for messages.

        Raises:
            CorruptSampleError: it is not there, or has other bytes than the index says.
            UserError: the server cannot be reached or refuses, the index was changed, or the cache cannot be used.
        """
        try:
            if shard.sha256 in self.lost:
                raise CorruptSampleError(self.lost[shard.sha256])
            fill = self._filling(shard, ATTEMPTS, self._told(shard))
            return cached.opened(self.cache, shard.sha256, shard.size, fill, self._url(shard))
        except CorruptSampleError as error:
            raise CorruptSampleError(f"{where}: {error}") from error

    def fetch_ahead(self, shard: ShardEntry, need: int) -> bool:
        """Have a shard that is needed in `need` batches fetched, if there is room; returns whether it is there.

        One attempt is enough: who needs it makes the others, and says what is wrong. Raises as `opened`.
        """
        fill = self._filling(shard, 1, lambda done: None)
        return cached.fetch_ahead(self.cache, shard.sha256, shard.size, fill, need)

    def forget(self, shard: ShardEntry) -> None:
        """Fetch a shard again when it is needed: its file in the cache is damaged."""
        cached.forget(self.cache, shard.sha256)

    def size(self, shard: ShardEntry) -> int | None:
        """Return the bytes of a shard, by what the server says, or what they should be; None: it is not there."""
        if shard.sha256 in self.lost:
            return None
        try:
            size = version_of(self._url(shard)).size
        except FileNotFoundError:
            return None
        return shard.size if size is None else size

    def _url(self, shard: ShardEntry) -> str:
        return file_of(self.url, shard.name)

    def _told(self, shard: ShardEntry) -> Callable[[int], None]:
        """Return what tells how far a fetch is, which somebody waits for: every ten seconds, and at its end."""
        began = told = time.monotonic()

        def tell_of(done: int) -> None:
            nonlocal told
            self.cache.note()
            now, is_end = time.monotonic(), done == shard.size
            if now - told > cached.TELL_SECONDS or (is_end and now - began > 1):
                told = now
                rate = done / 1e6 / max(now - began, 1e-3)
                tell(f"{self._url(shard)}: {done / 1e6:.0f} of {shard.size / 1e6:.0f} MB fetched, {rate:.1f} MB/s")

        return tell_of

    def _filling(self, shard: ShardEntry, attempts: int, tell_of: Callable[[int], None]) -> Callable[[int], None]:
        def fill(descriptor: int) -> None:
            self._refuse_other_index(attempts)
            problem = f"{self._url(shard)} is missing; put it back"
            with suppress(FileNotFoundError):
                for _ in range(min(FETCHES, attempts)):
                    if (damage := self._fetch(shard, descriptor, attempts, tell_of)) is None:
                        return
                    problem = damage
            # It would be asked for again for each of its samples.
            self.lost[shard.sha256] = problem
            raise CorruptSampleError(problem)

        return fill

    def _fetch(self, shard: ShardEntry, descriptor: int, attempts: int, tell_of: Callable[[int], None]) -> str | None:
        """Write a shard's bytes; returns what is wrong with them."""
        url, done, digest = self._url(shard), 0, hashlib.sha256()

        def note() -> None:
            # Who waits looks at the time of the file's last change.
            os.utime(descriptor)
            self.cache.note()

        while done < shard.size:
            part = part_of(url, done, min(PART_BYTES, shard.size - done), attempts, note)
            if not part:
                return f"{url} has {done} bytes, the index says {shard.size}; copy it there again"
            digest.update(part)
            _write(descriptor, part, done)
            done += len(part)
            tell_of(done)
        if digest.hexdigest() != shard.sha256:
            return f"the bytes of {url} are not those of the index (checksum differs); copy both there again"
        return None

    def _refuse_other_index(self, attempts: int) -> None:
        """Make sure that the index is still the one that this program began with, before more is fetched by it."""
        url = file_of(self.url, INDEX_NAME)
        try:
            version = version_of(url, attempts)
            if version == self.index_version and (version.etag or version.modified):
                return
            is_same = hashlib.sha256(whole_of(url, version.size, attempts)).hexdigest() == self.index_digest
            if is_same and version_of(url, attempts) == version:
                self.index_version = version
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise UserError(
                f"{url}: was changed or removed since this program began with it; put back the shards and the index "
                "that it began with, then start again"
            )


def _write(descriptor: int, part: bytes, offset: int) -> None:
    rest = memoryview(part)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def open_far_shards(url: str, cache: Cache) -> tuple[FarShards, ShardIndex]:
    """Return a folder of shards far away, and its index as it is now.

    Raises:
        UserError: it has no index, or one that is damaged, the server cannot be reached or refuses, the cache cannot be
            used, or a shard is larger than its limit.
    """
    place = file_of(url, INDEX_NAME)
    try:
        version, text = _index_text(place, cache)
    except FileNotFoundError:
        raise UserError(
            f"{url}: no {INDEX_NAME} there, so no complete folder of shards; check the URL, or copy one there that "
            "esl-dist pack made"
        ) from None
    index = _read(text, place)
    largest = max(index.shards, key=lambda shard: shard.size, default=None)
    if largest is not None and largest.size > cache.limit:
        raise UserError(
            f"{file_of(url, largest.name)}: has {largest.size} bytes, more than cache.gigabytes={cache.limit / 1e9:g} "
            "holds; raise it"
        )
    return FarShards(url, cache, hashlib.sha256(text).hexdigest(), version), index


def _read(text: bytes, place: str) -> ShardIndex:
    try:
        content = parsed_json(text.decode())
    except ValueError as error:
        raise UserError(f"{place}: cannot be read as JSON ({error}); copy it there again") from error
    # Not a path, which has no double slash.
    return index_from(Content(content, place, REMEDY))


def _index_text(place: str, cache: Cache) -> tuple[Version, bytes]:
    """Return the index's bytes and version; where that has a name, one process of this machine fetches them for all."""
    version = version_of(place)
    size = version.size
    # The time of its last change is in seconds, which is not enough.
    if version.etag is None or size is None or size + DIGEST_BYTES > cache.limit:
        return version, whole_of(place, size)

    def fill(descriptor: int) -> None:
        text = whole_of(place, size)
        if version_of(place) != version:
            raise _ReplacedError
        # What is damaged is not kept.
        _read(text, place)
        os.ftruncate(descriptor, DIGEST_BYTES + len(text))
        _write(descriptor, hashlib.sha256(text).digest() + text, 0)

    name = hashlib.sha256(json.dumps([place, *version]).encode()).hexdigest()
    with suppress(_ReplacedError):
        for _ in range(FETCHES):
            with open(cached.opened(cache, name, DIGEST_BYTES + size, fill, place), "rb") as file:
                digest, text = file.read(DIGEST_BYTES), file.read()
            if hashlib.sha256(text).digest() == digest:
                return version, text
            cached.forget(cache, name)
    # Without a version it is compared by its bytes.
    return Version(None, None, None), whole_of(place, None)
