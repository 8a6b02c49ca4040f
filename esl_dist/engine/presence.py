"""Which rank is missing: every rank notes in a store that all can read where it is, so that a lost one has a name.

A collective that waits for ever says nothing. So a thread on each rank writes down, once a second, how many collectives
its rank has come to; the value changes as long as the process lives. When a rank has waited longer than the timeout, or
its connection breaks, it reads what the others wrote: an error they ended with, that they do not write any more (killed
or stopped), or that they have come to fewer collectives (they hang).
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._C._distributed_c10d import Store

from esl_dist.command_line import EXIT_LOST_RANK

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""After which a rank that writes nothing does not answer; several beats."""


class Presence:
    """This rank's notes, and what can be read off those of the others.

    Args:
        store: a connection of its own, for a thread uses it; `ERROR` keys hold last words, `RANK` keys places.
        rank: this rank.
        world_size: number of ranks.
        timeout_seconds: after which a rank that waits ends the process.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_seconds: float) -> None:
        """Begin to write notes."""
        self._store, self._rank, self._world_size = store, rank, world_size
        self._timeout_seconds = timeout_seconds
        self._collectives, self._place, self._beats = 0, "the start", 0
        self._waiting_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self, place: str) -> Iterator[None]:
        """Mark that this rank is in a collective: it has come to `place` and waits for the others."""
        self._collectives, self._place = self._collectives + 1, place
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def end_with(self, error: BaseException) -> None:
        """Leave last words for the other ranks."""
        self._store.set(f"error/{self._rank}", f"{error}" or type(error).__name__)

    def stop(self) -> None:
        """End the notes."""
        self._ended.set()
        self._thread.join()

    def missing(self) -> str | None:
        """Say which rank is lost and why, as far as it can be told; None if all are there. Takes some seconds."""
        try:
            return self._last_words() or self._silent_ranks() or self._ranks_behind()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return f"the store of the ranks, kept by the launcher or by rank 0, does not answer any more ({reason})"

    def _last_words(self) -> str | None:
        for rank in self._others():
            if self._store.check([f"error/{rank}"]):
                return f"rank {rank} ended: {self._store.get(f'error/{rank}').decode()}"
        return None

    def _silent_ranks(self) -> str | None:
        before = self._notes()
        time.sleep(SILENT_SECONDS)
        after = self._notes()
        silent = [rank for rank in self._others() if before.get(rank) == after.get(rank)]
        if not silent:
            return None
        return f"{_places(silent, after)} does not answer any more: killed, or stopped"

    def _ranks_behind(self) -> str | None:
        notes = self._notes()
        behind = [rank for rank, note in notes.items() if note["collectives"] < self._collectives]
        return f"{_places(behind, notes)} has not come to {self._place}: it hangs" if behind else None

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world_size) if rank != self._rank]

    def _notes(self) -> dict[int, dict[str, Any]]:
        keys = {rank: f"rank/{rank}" for rank in self._others()}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._beats += 1
            note = {"beats": self._beats, "collectives": self._collectives, "place": self._place}
            try:
                self._store.set(f"rank/{self._rank}", json.dumps(note))
            except RuntimeError:
                # The main thread meets the same trouble and explains it.
                return
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._timeout_seconds:
                self._give_up()

    def _give_up(self) -> None:
        print(
            f"error (rank {self._rank}): waited {self._timeout_seconds:g} seconds at {self._place}: "
            f"{self.missing() or 'every rank says that it is there'}",
            file=sys.stderr,
            flush=True,
        )
        # The main thread cannot be woken inside a collective.
        os._exit(EXIT_LOST_RANK)


def _places(ranks: list[int], notes: dict[int, dict[str, Any]]) -> str:
    return ", ".join(
        f"rank {rank} (last at {notes[rank]['place'] if rank in notes else 'its start'})" for rank in ranks
    )
