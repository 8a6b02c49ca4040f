"""Which rank is missing: every rank notes in a store that all can read where it is, so that a lost one has a name.

A collective that waits for ever says nothing. So a thread on each rank writes down, once a second, what its rank does;
the note changes as long as the process lives. A rank that has waited longer than the timeout, or whose connection
breaks, reads what the others wrote: an error they ended with, that they do not write any more (killed or stopped), or
that they neither wait nor get on (they hang). While one of them gets on with its work, the others wait.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store

from esl_dist.command_line import EXIT_LOST_RANK

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""After which a rank that writes nothing does not answer; several beats."""

ANSWER_SECONDS = 10.0
"""After which a store that does not answer is given up."""

COLLECTIVES = ("torch/distributed/", "torch/nn/modules/_functions")
"""Files of torch in which a rank waits for others; the second is that of synchronised batch norm on CUDA."""

PROJECT = str(Path(__file__).resolve().parents[2])

Note = dict[str, Any]
Answer = TypeVar("Answer")


class Presence:
    """This rank's notes, and what can be read off those of the others.

    Args:
        store: a connection of its own; `rank/N` holds what rank N does, `error/N` its last words.
        rank: this rank.
        world_size: number of ranks.
        timeout_seconds: after which a rank that waits for one that does not get on ends the process.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_seconds: float) -> None:
        """Begin to write notes, and to watch the time."""
        self._store, self.rank, self._world_size = store, rank, world_size
        self._timeout_seconds = timeout_seconds
        self._collectives, self._work, self._beats = 0, 0, 0
        self._place, self._inside = "the start", False
        self._main = threading.get_ident()
        self._ended = threading.Event()
        # Two threads: a store that does not answer must not stop the clock.
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._write_notes, self._watch_time)]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def waiting(self, place: str) -> Iterator[None]:
        """Mark that this rank has come to the collective at `place` and waits for the others."""
        self._collectives, self._place, self._inside = self._collectives + 1, place, True
        try:
            yield
        finally:
            self._inside = False

    def worked(self) -> None:
        """Note that this rank gets on with work of which the others see nothing."""
        self._work += 1

    def end_with(self, error: object) -> None:
        """Leave last words for the other ranks, if there is still a store."""

        def tell() -> None:
            with suppress(RuntimeError):
                self._store.set(f"error/{self.rank}", f"{error}" or type(error).__name__)

        self._within(tell, ANSWER_SECONDS, None)

    def wait_until_heard(self) -> None:
        """Return when the others have read this rank's last words or left their own; after some seconds at the latest.

        For the rank that keeps the store: it goes with its process.
        """
        deadline = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            with suppress(RuntimeError):
                if all(self._has_heard(rank) for rank in self._others()):
                    return
            time.sleep(BEAT_SECONDS / 10)

    def _has_heard(self, rank: int) -> bool:
        return any(self._store.check([f"{what}/{rank}"]) for what in ("heard", "error"))

    def stop(self) -> None:
        """End the notes."""
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * BEAT_SECONDS)

    def missing(self, earlier: dict[int, Note] | None = None) -> str | None:
        """Say which rank is lost and why; None if none can be told to be. Takes some seconds.

        Args:
            earlier: notes of the others since which they should have got on; None: nothing is said of that.
        """
        lost: str | None = _store_is_lost("no answer")
        return self._within(lambda: self._look(earlier), SILENT_SECONDS + ANSWER_SECONDS, lost)

    def _within(self, ask: Callable[[], Answer], seconds: float, otherwise: Answer) -> Answer:
        """Return what a question to the store gives within some seconds: it may not answer any more."""
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
        thread.start()
        thread.join(seconds)
        return answers[0] if answers else otherwise

    def places(self) -> str:
        """Say where the others are, where none of them can be singled out."""
        nothing: dict[int, Note] = {}
        notes = self._within(self._notes_or_none, ANSWER_SECONDS, nothing)
        return f"no rank can be singled out; {_described(notes)}" if notes else _store_is_lost("no answer")

    def _look(self, earlier: dict[int, Note] | None) -> str | None:
        try:
            before = self._notes()
            words = self._last_words()
            if words is None:
                time.sleep(SILENT_SECONDS)
                words = self._last_words()
            after = self._notes()
            return words or self._silent(before, after) or self._hanging(earlier or after, after)
        except RuntimeError as error:
            return _store_is_lost(str(error).splitlines()[0])

    def _last_words(self) -> str | None:
        for rank in self._others():
            if self._store.check([f"error/{rank}"]):
                self._store.set(f"heard/{self.rank}", "")
                return f"rank {rank} ended: {self._store.get(f'error/{rank}').decode()}"
        return None

    def _silent(self, before: dict[int, Note], after: dict[int, Note]) -> str | None:
        silent = {rank: after.get(rank, {}) for rank in self._others() if before.get(rank) == after.get(rank)}
        return f"{_described(silent)} does not answer any more: killed, or stopped" if silent else None

    def _hanging(self, earlier: dict[int, Note], now: dict[int, Note]) -> str | None:
        idle = {
            rank: note for rank, note in now.items() if rank in earlier and _progress(earlier[rank]) == _progress(note)
        }
        behind = {
            rank: note
            for rank, note in idle.items()
            if (not note["waits"] and earlier is not now) or (self._inside and note["collectives"] < self._collectives)
        }
        return f"{_described(behind)} has not come to {self._place}: it hangs" if behind else None

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world_size) if rank != self.rank]

    def _notes(self) -> dict[int, Note]:
        keys = {rank: f"rank/{rank}" for rank in self._others()}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}

    def _note(self) -> Note:
        in_collective, line = _doing(self._main)
        return {
            "collectives": self._collectives,
            "work": self._work,
            "waits": self._inside or in_collective,
            "place": self._place,
            "line": line,
        }

    def _write_notes(self) -> None:
        while not self._ended.is_set():
            self._beats += 1
            with suppress(RuntimeError):
                self._store.set(f"rank/{self.rank}", json.dumps({**self._note(), "beats": self._beats}))
            self._ended.wait(BEAT_SECONDS)

    def _watch_time(self) -> None:
        seen, since = self._note(), time.monotonic()
        earlier: dict[int, Note] | None = None
        nothing: dict[int, Note] = {}
        while not self._ended.wait(BEAT_SECONDS):
            now, waited = self._note(), time.monotonic() - since
            if not now["waits"] or _progress(now) != _progress(seen):
                seen, since, earlier = now, time.monotonic(), None
            elif earlier is None and waited > self._timeout_seconds / 2:
                earlier = self._within(self._notes_or_none, ANSWER_SECONDS, nothing)
            elif waited > self._timeout_seconds:
                cause = self.missing(earlier)
                if self._ended.is_set() or _progress(self._note()) != _progress(seen):
                    # Meanwhile the others have come.
                    continue
                if cause is not None:
                    self._give_up(cause)
                # They get on: they have as much time again.
                since, earlier = time.monotonic(), None

    def _notes_or_none(self) -> dict[int, Note]:
        with suppress(RuntimeError):
            return self._notes()
        return {}

    def _give_up(self, cause: str) -> None:
        text = f"waited {self._timeout_seconds:g} seconds at {self._place}: {cause}"
        print(f"error (rank {self.rank}): {text}", file=sys.stderr, flush=True)
        self.end_with(text)
        # The main thread cannot be woken inside a collective.
        os._exit(EXIT_LOST_RANK)


def _doing(thread: int) -> tuple[bool, str]:
    """Return whether a thread is inside a collective, and the line of this project it is at."""
    in_collective, line = False, ""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        file = frame.f_code.co_filename
        in_collective = in_collective or any(part in file for part in COLLECTIVES)
        if not line and file.startswith(PROJECT):
            line = f"{Path(file).relative_to(PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return in_collective, line


def _progress(note: Note) -> tuple[int, int]:
    return note["collectives"], note["work"]


def _described(notes: dict[int, Note]) -> str:
    places = {rank: f"{note['place']}; {note['line']}" if note else "its start" for rank, note in notes.items()}
    return ", ".join(f"rank {rank} (last at {place})" for rank, place in places.items())


def _store_is_lost(reason: str) -> str:
    return f"the store of the ranks is lost ({reason}), and with it rank 0 or the launcher that keeps it"
