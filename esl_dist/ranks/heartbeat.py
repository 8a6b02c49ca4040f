"""Which rank is missing: every rank notes in a store that all can read where it is, so that a lost one has a name.

A collective that waits for ever says nothing. So each rank has two threads beside its work. One exchanges notes once a
second: it writes what its rank does, and reads what the others do and the last words of one that ended with an error.
The other touches no store, for that may not answer, and watches the time: when this rank has waited for longer than the
timeout, it ends the process with the name of the rank that writes no more (killed or stopped), or that neither waits
nor gets on (it hangs). A rank whose connection breaks asks at once.
"""

import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch._C._distributed_c10d import Store

from esl_dist.command_line import EXIT_LOST_RANK
from esl_dist.errors import LostRankError, StoppedError, UserError, memory_words

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""After which a rank that writes nothing, and whose connection is broken, does not answer; several beats."""

ANSWER_SECONDS = 10.0
"""After which a store that does not answer is given up."""

COLLECTIVES = ("torch/distributed/", "torch/nn/modules/_functions")
"""Files of torch in which a rank waits for others; the second is that of synchronised batch norm on CUDA."""

STANDARD_LIBRARY = sysconfig.get_path("stdlib")

LAST_WORDS = "last words"
"""Key of what the first rank that ended said: what the others say then follows from it."""

Note = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """Another rank's newest note, and when it, and the progress in it, were last seen to change."""

    note: Note
    changed: float
    got_on: float


class Heartbeat:
    """This rank's notes, and what can be read off those of the others."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout_seconds: float) -> None:
        """Begin to exchange notes, and to watch the time.

        Args:
            store: a connection of its own.
            rank: this rank.
            world_size: number of ranks.
            timeout_seconds: after which a rank that waits for one that does not get on ends the process.
        """
        self.rank = rank
        self._store, self._timeout_seconds = store, timeout_seconds
        self._others = [other for other in range(world_size) if other != rank]
        self._collectives, self._work = 0, 0
        self._place, self._in_collective = "the start", False
        self._main = threading.get_ident()

        self._clock, self._answered = 0.0, 0.0
        self._seen = {other: Seen({}, 0.0, 0.0) for other in self._others}
        self._heard: str | None = None
        self._store_error: str | None = None
        self._own_words: str | None = None
        self._told, self._told_all = threading.Event(), threading.Event()
        self._ended, self._hurry = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._exchange_notes, self._watch_time)]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def waiting(self, place: str) -> Iterator[None]:
        """Mark that this rank has come to the collective at `place` and waits for the others."""
        self._collectives, self._place, self._in_collective = self._collectives + 1, place, True
        try:
            yield
        finally:
            self._in_collective = False

    def worked(self) -> None:
        """Note that this rank gets on with work of which the others see nothing."""
        self._work += 1

    def end_with(self, error: BaseException | str) -> None:
        """Leave last words for the other ranks if there are none yet, and wait some seconds until all have heard them.

        With this process the store may go: rank 0 keeps it, or a launcher that ends when a rank of its machine has.
        """
        words = error if isinstance(error, str) else _words_of(error)
        # A path need not be Unicode, and a store takes nothing else.
        self._own_words = words.encode("utf-8", "backslashreplace").decode()
        self._hurry.set()
        if self._told.wait(ANSWER_SECONDS):
            self._told_all.wait(SILENT_SECONDS)
            if self.rank == 0:
                # The others look once more whether all have heard.
                time.sleep(BEAT_SECONDS / 2)

    def stop(self) -> None:
        """End the notes."""
        self._ended.set()
        self._hurry.set()
        for thread in self._threads:
            thread.join(2 * BEAT_SECONDS)

    def missing(self) -> str | None:
        """Say which rank is lost, now that a connection is broken; None if all answer. Takes some seconds."""
        deadline = time.monotonic() + SILENT_SECONDS + 3 * BEAT_SECONDS
        while time.monotonic() < deadline:
            if self._heard is not None or self._store_error is not None:
                break
            time.sleep(BEAT_SECONDS / 10)
        return self._ended_rank() or self._silent_store(SILENT_SECONDS) or self._silent_ranks(self._seen)

    def _ended_rank(self) -> str | None:
        return self._heard or (None if self._store_error is None else _store_is_lost(self._store_error))

    def _silent_store(self, seconds: float) -> str | None:
        return _store_is_lost("no answer") if self._clock - self._answered > seconds else None

    def _silent_ranks(self, among: dict[int, Seen]) -> str | None:
        silent = {rank: one.note for rank, one in among.items() if self._answered - one.changed > SILENT_SECONDS}
        return f"{_described(silent)} does not answer any more: killed, or stopped" if silent else None

    def _idle_ranks(self, seconds: float) -> str | None:
        idle = {rank: one for rank, one in self._seen.items() if self._answered - one.got_on > seconds}
        hanging = {rank: one.note for rank, one in idle.items() if self._keeps_others_waiting(one.note)}
        if silent := self._silent_ranks(idle):
            return silent
        if hanging:
            return f"{_described(hanging)} hangs"
        if len(idle) == len(self._others):
            notes = {rank: one.note for rank, one in idle.items()}
            return f"nobody gets on, and no rank can be singled out; {_described(notes)}"
        return None

    def _keeps_others_waiting(self, note: Note) -> bool:
        is_behind = self._in_collective and _progress(note)[0] < self._collectives
        return is_behind or not note.get("waits", False)

    def _note(self) -> Note:
        in_torch, line = _doing(self._main)
        return {
            "collectives": self._collectives,
            "work": self._work,
            "waits": self._in_collective or in_torch,
            "place": self._place,
            "line": line,
        }

    def _exchange_notes(self) -> None:
        beats = 0
        try:
            while not self._ended.is_set() and not self._told_all.is_set():
                beats += 1
                self._store.set(f"note/{self.rank}", json.dumps({**self._note(), "beats": beats}))
                self._hear()
                self._seen = {rank: self._compared(rank, note) for rank, note in self._read_notes().items()}
                self._answered = self._clock
                self._hurry.wait(BEAT_SECONDS / 10 if self._told.is_set() else BEAT_SECONDS)
                self._hurry.clear()
        except Exception as error:
            self._store_error = _first_line(error) if isinstance(error, RuntimeError) else _words_of(error)
            self._told.set()
            self._told_all.set()

    def _hear(self) -> None:
        """Hear the last words of another rank, or speak this rank's own; only the first words stay."""
        if not self._told.is_set():
            if self._store.check([LAST_WORDS]):
                self._heard = self._store.get(LAST_WORDS).decode()
            elif self._own_words is not None:
                self._store.compare_set(LAST_WORDS, "", f"rank {self.rank} ended: {self._own_words}")
            else:
                return
            self._store.set(f"heard/{self.rank}", "")
            self._told.set()
        if all(self._store.check([f"heard/{rank}"]) for rank in self._others):
            self._told_all.set()

    def _read_notes(self) -> dict[int, Note]:
        notes: dict[int, Note] = {rank: {} for rank in self._others}
        keys = {rank: f"note/{rank}" for rank in self._others}
        if not self._store.check(list(keys.values())):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        contents = self._store.multi_get(list(keys.values())) if keys else []
        return notes | {rank: json.loads(content) for rank, content in zip(keys, contents, strict=True)}

    def _compared(self, rank: int, note: Note) -> Seen:
        before = self._seen[rank]
        return Seen(
            note,
            before.changed if note == before.note else self._clock,
            before.got_on if _progress(note) == _progress(before.note) else self._clock,
        )

    def _watch_time(self) -> None:
        came, last, progress = 0.0, time.monotonic(), (-1, -1)
        while not self._ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            # While the whole job was suspended, nobody waited.
            self._clock, last = self._clock + min(now - last, 2 * BEAT_SECONDS), now
            own = self._note()
            if not own["waits"] or _progress(own) != progress:
                came, progress = self._clock, _progress(own)
            elif cause := self._reason_to_end(self._clock - came):
                self._give_up(f"waited {self._clock - came:.0f} seconds ({own['place']}; {own['line']}): {cause}")
                return

    def _reason_to_end(self, waited: float) -> str | None:
        if waited < SILENT_SECONDS:
            return None
        if waited < self._timeout_seconds:
            return self._ended_rank()
        seconds = self._timeout_seconds
        return self._ended_rank() or self._silent_store(min(seconds, ANSWER_SECONDS)) or self._idle_ranks(seconds)

    def _give_up(self, text: str) -> None:
        # Whatever is wrong with standard error, the process has to end.
        with suppress(Exception):
            sys.stderr.write(f"error (rank {self.rank}): {text}\n")
            sys.stderr.flush()
        self.end_with(text)
        # The main thread cannot be woken inside a collective.
        os._exit(EXIT_LOST_RANK)


def _words_of(error: BaseException) -> str:
    if isinstance(error, UserError | LostRankError | StoppedError) or not str(error):
        return _first_line(error)
    return memory_words(error) or f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _doing(thread: int) -> tuple[bool, str]:
    """Return whether a thread is inside a collective, and the innermost line that belongs to no library."""
    in_collective, line = False, ""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        file = frame.f_code.co_filename
        in_collective = in_collective or any(part in file for part in COLLECTIVES)
        if not line and not _is_library(file):
            line = f"{'/'.join(file.split('/')[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return in_collective, line


def _is_library(file: str) -> bool:
    if "/esl_dist/" in file:
        return file.endswith(("ranks/heartbeat.py", "ranks/session.py"))
    return file.startswith(("<", STANDARD_LIBRARY)) or "-packages/" in file


def _progress(note: Note) -> tuple[int, int]:
    return note.get("collectives", 0), note.get("work", 0)


def _described(notes: dict[int, Note]) -> str:
    places = {rank: f"{note['place']}; {note['line']}" if note else "its start" for rank, note in notes.items()}
    return ", ".join(f"rank {rank} (last at {place})" for rank, place in places.items())


def _store_is_lost(reason: str) -> str:
    return f"the store of the ranks is lost ({reason}), and with it rank 0 or the launcher that keeps it"
