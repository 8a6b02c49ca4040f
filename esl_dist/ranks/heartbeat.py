"""Which rank is missing: every rank notes in a store that all can read where it is, so that a lost one has a name.

A collective that waits for ever says nothing. So each rank has two threads beside its work. One exchanges notes once a
second: it writes what its rank does, and reads what the others do and the last words of one that ended with an error.
The other touches no store, for that may not answer, and watches the time: when this rank has waited for longer than the
timeout, it ends the process with the name of the rank that writes no more (killed or stopped), or that has not come to
where this one waits (it hangs). A rank whose connection breaks asks at once: its main thread, or, where that sits in a
call of CUDA or gloo that nothing interrupts, the thread that watches the time.
"""

import json
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import _world

from esl_dist.early import line_end
from esl_dist.endings import EXIT_LOST_RANK, PROGRAM, Ending, as_unicode, cause, ending, note_end_soon, within
from esl_dist.errors import LostRankError
from esl_dist.ranks.network import machine, machine_of_store, network_advice
from esl_dist.ranks.stuck_launcher import watch_launcher
from esl_dist.stop_signals import finish_writing

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""After which a rank that writes nothing, and whose connection is broken, does not answer; several beats."""

THE_START, START_SECONDS = "the start", 25.0
"""Place of what ranks do before their work, and how long one may say nothing there, as while CUDA begins; torchrun
gives those that are left 30 seconds to name a lost one."""

ANSWER_SECONDS = 10.0
"""After which a store that does not answer is given up."""

HEARING_BEATS = 1.5
"""In which the others hear the last words of a rank, before it ends; a person who pressed Ctrl-C waits for that."""

BACKEND_FACTOR = 10
"""How much longer than for a rank that does not get on the others wait for one that does, and never comes."""

WORDS_SECONDS = 2.0
"""For a message to standard error, and for the start of a process, where either may wait without end."""

GPU_MAY_HANG = ", as when a GPU of theirs hangs (nvidia-smi and dmesg of their machines may show it)"

LIBRARIES = ("<", sysconfig.get_path("stdlib"))

LAST_WORDS = "last words"
"""Key of how the first rank ended: what the others say then follows from it."""

Note = dict[str, Any]


@dataclass
class Progress:
    """How far this process is, as its heartbeat notes it.

    Attributes:
        begun: collectives that are marked here.
        work: parts of its work that are done.
        place: of the last of these collectives.
        is_in_collective: whether it waits there.
        is_on_gpu: whether any line of the program may wait for other ranks: each that waits for the GPU, or finds its
            queue full, waits for the collectives in it.
        alarms: each returns what is broken between the ranks, or None, without waiting.
    """

    begun: int = 0
    work: int = 0
    place: str = THE_START
    is_in_collective: bool = False
    is_on_gpu: bool = False
    alarms: list[Callable[[], str | None]] = field(default_factory=list)

    @contextmanager
    def waiting(self, place: str) -> Iterator[None]:
        """Mark that this rank has come to the collective at `place` and waits for the others; it may lie in another."""
        around, was_waiting = self.place, self.is_in_collective
        self.begun, self.place, self.is_in_collective = self.begun + 1, place, True
        try:
            yield
        finally:
            self.is_in_collective = was_waiting
            if was_waiting:
                self.place = around

    def worked(self) -> None:
        """Note that this rank gets on with work of which the others see nothing."""
        self.work += 1


PROGRESS = Progress()
"""Of this process: as global as the process group that torch.distributed keeps."""


@dataclass(frozen=True)
class Seen:
    """A rank's newest note, and when it, and the progress in it, were last seen to change."""

    note: Note
    changed: float = 0.0
    got_on: float = 0.0

    def then(self, note: Note, now: float) -> "Seen":
        """Return what is known now that the rank's note is `note`."""
        has_got_on = any(note.get(key) != self.note.get(key) for key in ("begun", "work"))
        return Seen(note, self.changed if note == self.note else now, now if has_got_on else self.got_on)


class Heartbeat:
    """This rank's notes, and what can be read off those of the others."""

    def __init__(
        self, store: Store, rank: int, world_size: int, timeout_seconds: float, progress: Progress = PROGRESS
    ) -> None:
        """Begin to exchange notes, and to watch the time.

        Args:
            store: a connection of its own.
            rank: this rank.
            world_size: number of ranks.
            timeout_seconds: after which a rank that waits for one that does not get on ends the process.
            progress: this rank's.
        """
        self.rank, self.progress = rank, progress
        self._store, self._timeout_seconds = store, timeout_seconds
        self._machine, self._machine_of_store = machine(), machine_of_store()
        self._main = threading.get_ident()
        self._clock, self._answered = 0.0, 0.0
        self._others = {other: Seen({}) for other in range(world_size) if other != rank}
        self._own_end: Ending | None = None
        self._first_end: Ending | None = None
        self._lost: str | None = None
        self._is_asking, self._is_done = False, False
        self._told, self._ended = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._exchange_notes, self._watch_time)]
        for thread in self._threads:
            thread.start()

    def end_with(self, error: BaseException | str) -> None:
        """Leave last words for the other ranks if there are none yet, and wait some seconds in which all hear them.

        With this process the store may go: rank 0 keeps it, or a launcher that ends when a rank of its machine has.
        """
        self._own_end = ending(LostRankError(error) if isinstance(error, str) else error)
        self._ended.set()
        if isinstance(error, str | LostRankError):
            within(WORDS_SECONDS, lambda: watch_launcher(self.rank))
        silent_seconds = self._clock - self._answered
        if self._told.wait(max(ANSWER_SECONDS - silent_seconds, BEAT_SECONDS)):
            time.sleep(HEARING_BEATS * BEAT_SECONDS)

    def stop(self) -> None:
        """End the notes, with one that says whether this rank parts in good order.

        Where a lost store is an alarm (on GPUs), rank 0, which may keep it, waits until the others have read that.
        """
        self._is_done = self._own_end is None
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * BEAT_SECONDS)
        if self._is_done and self.progress.is_on_gpu and self.rank == 0:
            time.sleep(HEARING_BEATS * BEAT_SECONDS)

    def missing(self) -> str | None:
        """Say which rank is lost, now that a connection is broken; None if all answer. Takes some seconds."""
        self._is_asking = True
        self._told.wait(SILENT_SECONDS + 3 * BEAT_SECONDS)
        return self._lost_rank(self._others, SILENT_SECONDS)

    def lost(self, words: str) -> LostRankError:
        """Return the error that says `words` of a lost rank, with how it ended as far as it has said that."""
        return LostRankError(words, self._first_end)

    def _lost_rank(self, among: dict[int, Seen], answer_seconds: float) -> str | None:
        """Say who ended, or does not answer; None if everybody does."""
        if self._lost is not None:
            return self._lost
        if self._clock - self._answered > answer_seconds:
            return self._lost_store("no answer")
        silent = self._silent(among, SILENT_SECONDS)
        return self._no_answer(silent) if silent else None

    def _silent(self, among: dict[int, Seen], seconds: float) -> dict[int, Seen]:
        """Return who has not changed its note for so long, though it has not parted in good order."""
        return {
            rank: seen
            for rank, seen in among.items()
            if self._answered - seen.changed > seconds and not seen.note.get("is_done")
        }

    def _no_answer(self, silent: dict[int, Seen]) -> str:
        return f"{_described(silent)} does not answer any more: killed, or stopped{self.network_advice(silent)}"

    def network_advice(self, ranks: dict[int, Seen] | None = None) -> str:
        """Return what to add to a message on some of the other ranks (None: on all), if they are on other machines."""
        seen = (self._others if ranks is None else ranks).values()
        return network_advice(self._machine, [one.note.get("machine", self._machine) for one in seen])

    def _lost_store(self, reason: str) -> str:
        advice = network_advice(self._machine, [self._machine_of_store])
        return f"the store of the ranks is lost ({reason}), and with it rank 0 or the launcher that keeps it{advice}"

    def _note(self) -> Note:
        # Batch norm and DeepSpeed begin collectives that are not marked; every group counts its own.
        groups: list[Any] = list(_world.pg_map)
        own = self.progress
        begun = own.begun + sum(group._get_sequence_number_for_group() for group in groups)
        place = {"place": own.place, "line": _line(self._main), "machine": self._machine}
        return {"begun": begun, "work": own.work, "is_done": self._is_done, **place}

    def _exchange_notes(self) -> None:
        keys = [f"note/{rank}" for rank in self._others]
        try:
            for key in keys:
                self._store.compare_set(key, "", "{}")
            for beat in count():
                is_last, end = self._ended.is_set(), self._own_end
                self._store.set(f"note/{self.rank}", json.dumps({**self._note(), "beat": beat}))
                notes = map(json.loads, self._store.multi_get(keys))
                seen = zip(self._others.items(), notes, strict=True)
                self._others = {rank: before.then(note, self._clock) for (rank, before), note in seen}
                self._answered = self._clock
                # Only the first words stay.
                if self._store.check([LAST_WORDS]):
                    self._first_end = Ending(*json.loads(self._store.get(LAST_WORDS)))
                    self._lost = f"rank {self._first_end.rank} ended: {as_unicode(self._first_end.line())}"
                elif end is not None:
                    self._store.compare_set(LAST_WORDS, "", json.dumps(end._replace(rank=self.rank, step=PROGRAM.step)))
                if is_last or end is not None or self._lost is not None:
                    break
                self._ended.wait(BEAT_SECONDS)
        except Exception as error:
            self._lost = self._lost_store(_first_line(error))
        self._told.set()

    def _watch_time(self) -> None:
        own, last = Seen({}), time.monotonic()
        alarm: tuple[str, float] | None = None
        while not self._ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            # While the whole job was suspended, nobody waited.
            self._clock, last = self._clock + min(now - last, 2 * BEAT_SECONDS), now
            own = own.then(self._note(), self._clock)
            waited = self._clock - own.got_on
            if alarm is None and (said := next(filter(None, (ask() for ask in self.progress.alarms)), None)):
                alarm = said, self._clock
            cause = self._reason_to_end(own.note["begun"], waited)
            if cause is None and alarm is not None and (self.progress.is_on_gpu or self._waits(waited)):
                cause = self._reason_of_alarm(alarm[0], self._clock - alarm[1])
            if cause is not None:
                self._give_up(f"waited {waited:.0f} seconds ({own.note['place']}; {own.note['line']}): {cause}")
                return

    def _reason_of_alarm(self, alarm: str, seconds: float) -> str | None:
        """Say what it means that `alarm` was given some seconds ago; None while that has to show."""
        # The main thread may have noticed by itself, and asks.
        if self._is_asking or seconds < SILENT_SECONDS:
            return None
        if self._lost is not None or seconds < SILENT_SECONDS + 3 * BEAT_SECONDS:
            return self._lost
        if all(seen.note.get("is_done") for seen in self._others.values()):
            return None
        # Without NCCL a connection that is idle may be cut alone, by a firewall: then who is lost falls silent, too.
        lost = self._lost_rank(self._others, SILENT_SECONDS)
        return lost or (self.unexplained(alarm) if self.progress.is_on_gpu else None)

    def _waits(self, waited: float) -> bool:
        """Say whether this rank is seen to wait for others, and has for longer than it takes to notice a lost one."""
        is_waiting = self.progress.is_in_collective or _is_in_torch_distributed(self._main)
        return waited >= SILENT_SECONDS and is_waiting

    def unexplained(self, reason: str) -> str:
        """Return what to say of a broken connection where no rank is missing."""
        return f"the ranks cannot exchange tensors, though all of them answer: {reason}{self.network_advice()}"

    def _reason_to_end(self, begun: int, waited: float) -> str | None:
        """Say for whom this rank has waited too long since it began its last collective; None: it may go on."""
        if self._is_asking or waited < SILENT_SECONDS:
            return None
        is_on_gpu, seconds = self.progress.is_on_gpu, self._timeout_seconds
        waits = self._waits(waited)
        starts = self.progress.is_in_collective and self.progress.place == THE_START
        if starts and (silent := self._silent(self._others, START_SECONDS)):
            return self._no_answer(silent)
        # Where nothing else tells of a killed rank 0, that the store went with it does.
        is_alarm = is_on_gpu and (self._first_end is not None or not self._has_rank_0_parted())
        if self._lost is not None and (waits or is_alarm):
            return self._lost
        positions = {rank: seen.note.get("begun", 0) for rank, seen in self._others.items()}
        behind = {rank: seen for rank, seen in self._others.items() if positions[rank] < begun}
        # Those that are ahead will say that this one hangs.
        waits = waits or (is_on_gpu and max(positions.values()) <= begun)
        if waited < seconds or not (waits or behind):
            return None
        if is_on_gpu and waited > BACKEND_FACTOR * seconds:
            return f"{_described(behind or self._others)} works on, and does not come{self.network_advice(behind)}"
        idle = {rank: seen for rank, seen in self._others.items() if self._answered - seen.got_on > seconds}
        if lost := self._lost_rank(idle, min(seconds, ANSWER_SECONDS)):
            return lost
        if hanging := {rank: seen for rank, seen in behind.items() if rank in idle}:
            return f"{_described(hanging)} hangs{self.network_advice(hanging)}"
        if len(idle) == len(self._others):
            gpus = GPU_MAY_HANG if is_on_gpu else ""
            advice = self.network_advice(idle)
            return f"nobody gets on, and no rank can be singled out{gpus}; {_described(idle)}{advice}"
        return None

    def _has_rank_0_parted(self) -> bool:
        return self.rank != 0 and self._others[0].note.get("is_done", False)

    def _give_up(self, text: str) -> None:
        # Whatever is wrong with standard error, the process has to end.
        within(WORDS_SECONDS, lambda: _say(f"error (rank {self.rank}): {text}"))
        note_end_soon(cause(self.lost(text)))
        self.end_with(text)
        finish_writing()
        # The main thread cannot be woken inside a collective.
        os._exit(EXIT_LOST_RANK)


def _say(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(f"{line_end()}{text}\n")
        sys.stderr.flush()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_in_torch_distributed(thread: int) -> bool:
    """Return whether a thread is in torch's collectives, as batch norm and DeepSpeed begin them without a mark.

    On CPU they wait where they are begun: in the passes, which the parts below `ranks` make, and in DeepSpeed.
    """
    frames = traceback.walk_stack(sys._current_frames()[thread])
    return any("/torch/distributed/" in frame.f_code.co_filename for frame, _ in frames)


def _line(thread: int) -> str:
    """Return the innermost line at which a thread is that belongs neither to a library nor to what waits for ranks."""
    for frame, number in traceback.walk_stack(sys._current_frames()[thread]):
        file = frame.f_code.co_filename
        if not file.startswith(LIBRARIES) and "-packages/" not in file and "/esl_dist/ranks/" not in file:
            return f"{'/'.join(file.split('/')[-3:])}:{number}"
    return ""


def _described(ranks: dict[int, Seen]) -> str:
    notes = {rank: seen.note for rank, seen in ranks.items()}
    places = {rank: f"{note['place']}; {note['line']}" if note else "its start" for rank, note in notes.items()}
    return ", ".join(f"rank {rank} (last at {place})" for rank, place in places.items())
