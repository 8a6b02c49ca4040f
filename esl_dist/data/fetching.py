"""Fetching ahead: a process that has the shards of the next batches fetched before they are asked for.

Which samples come is a pure function, so a forked copy of the sequence of batches says which shards are needed, and
when; how many batches have been received is the one number that the program tells it. It does the work of nobody: a
shard that is not there when it is read is fetched by who reads it, and who reads says what is wrong.
"""

import mmap
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from esl_dist.data.cache import Cache, NoRoomError, Notice, is_there
from esl_dist.data.far_shards import FarShards
from esl_dist.data.remote import tell
from esl_dist.data.sampling import Wanted
from esl_dist.data.shard_index import ShardEntry
from esl_dist.data.shards import ShardReader
from esl_dist.data.workers import begin_forked
from esl_dist.errors import CorruptSampleError, UserError

SAMPLES_AHEAD = 4096
"""How far the process looks; how far it fetches is decided by the room in the cache."""
LOOK_SECONDS = 0.1
PAUSE_SECONDS = 5.0
"""After something went wrong."""
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that a launcher sends to all processes; this one ends with its parent."""


@contextmanager
def fetching_ahead(
    wanted: Iterator[list[Wanted]], readers: Sequence[ShardReader], cache: Cache | None
) -> Iterator[Callable[[int], None]]:
    """Fetch shards while the block runs; without any from far away, do nothing.

    Args:
        wanted: the samples of each batch; nothing of it may have been taken yet, and nothing is taken of it.
        readers: whose shards hold the samples.
        cache: where they are kept; None: they lie here.

    Yields:
        What has to be called with the number of batches received so far.
    """
    if cache is None:
        yield lambda number: None
        return
    received = mmap.mmap(-1, 8)

    def note(number: int) -> None:
        received[:] = number.to_bytes(8, "little")

    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(wanted, readers, cache, received, os.getpid()), daemon=True
    )
    try:
        process.start()
    except OSError as error:
        tell(f"warning: no process can be started that fetches shards ahead ({error.strerror}); readers wait for them")
        yield note
        return
    try:
        yield note
    finally:
        # It may be in the middle of a file, which is then not there.
        process.kill()
        process.join()
        process.close()


@dataclass
class _Ahead:
    """The batches to come, and what they need."""

    wanted: Iterator[list[Wanted]]
    readers: Sequence[ShardReader]
    batches: deque[tuple[int, list[Wanted]]] = field(default_factory=deque)
    number: int = 0
    samples: int = 0

    def needs(self, received: int) -> dict[str, tuple[int, FarShards, ShardEntry]]:
        """Return the shards of the batches that are not received yet, by digest, with the batches until then."""
        self._leave_out_before(received)
        while self.samples < SAMPLES_AHEAD and (batch := next(self.wanted, None)) is not None:
            self.batches.append((self.number, batch))
            self.number += 1
            self.samples += len(batch)
            # Some may have been received before this process looked for the first time.
            self._leave_out_before(received)
        needs: dict[str, tuple[int, FarShards, ShardEntry]] = {}
        far = [(reader, reader.far) for reader in self.readers if reader.far is not None]
        for number, batch in self.batches:
            for reader, origin in far:
                for shard in (reader.shard(sample.position) for sample in batch):
                    needs.setdefault(shard.sha256, (number - received, origin, shard))
        return needs

    def _leave_out_before(self, received: int) -> None:
        while self.batches and self.batches[0][0] < received:
            self.samples -= len(self.batches.popleft()[1])


def _serve(
    wanted: Iterator[list[Wanted]], readers: Sequence[ShardReader], cache: Cache, received: mmap.mmap, parent: int
) -> None:
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)
    ahead, seen, needs = _Ahead(wanted, readers), -1, dict[str, tuple[int, FarShards, ShardEntry]]()
    notice: Notice | None = None
    begin_forked(parent)
    while True:
        try:
            notice = notice or Notice(cache)
            if (now := int.from_bytes(received[:], "little")) != seen:
                seen, needs = now, ahead.needs(now)
                notice.say({digest: need for digest, (need, _, _) in needs.items()})
            if not _fetch_first(needs.values(), cache):
                time.sleep(LOOK_SECONDS)
        except (UserError, OSError):
            # Who needs the shard says it.
            seen = -1
            time.sleep(PAUSE_SECONDS)


def _fetch_first(needs: Iterable[tuple[int, FarShards, ShardEntry]], cache: Cache) -> bool:
    """Fetch the shard that is needed first of those that are not there; returns whether one was fetched.

    One that another process fetches is passed over, so that several fetch at once; where there is no room, nothing is.
    """
    for need, far, shard in needs:
        if shard.sha256 not in far.lost and not is_there(cache, shard.sha256):
            try:
                if far.fetch_ahead(shard, need):
                    return True
            except NoRoomError:
                return False
            except CorruptSampleError:
                # It is lost now.
                continue
    return False
