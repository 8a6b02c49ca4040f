"""Reading ahead: processes that read and decode samples while the network computes.

torch's DataLoader is not used for it. It sends batches from a thread that, where it cannot, prints a traceback and
drops one that is then waited for without end; and it depends on named sockets, whose paths TMPDIR can make too long, on
/dev/shm, which has 64 MB in a container, and on an open file for each tensor. Here a process answers every request
itself, with a batch or with what went wrong. Its batches lie in files in memory that have no name and are opened before
it starts. Its end closes its pipe, so it is noticed at once, and its exit status says what it was.
"""

import gc
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Protocol

import cv2
import torch
from torch import Tensor

from esl_dist.data.cache import note_by
from esl_dist.data.sampling import Wanted
from esl_dist.early import renew_standard_error
from esl_dist.errors import UserError, memory_words
from esl_dist.machine import allow_open_files, shortage

READ_AHEAD = 2
"""Batches that each process is asked for before the first of them is used; each has a file in memory."""

LOOK_SECONDS = 1.0
"""How often a process that waits looks whether that makes sense any more."""

FILES_A_PROCESS = 1 + READ_AHEAD
"""That the program keeps open for each process that reads: one end of its pipe, and the memory of its batches."""

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""Signals of a process that went wrong by itself."""


class Origin(Protocol):
    """What is read, for messages: where it lies, and the name of each sample."""

    @property
    def folder(self) -> Path | str:
        """What holds the samples."""

    def where(self, position: int) -> str:
        """Name a sample."""


Sample = Mapping[str, Tensor]
Fields = dict[str, Tensor]
Layout = list[tuple[str, torch.Size, torch.dtype]]
"""Names, shapes and types of the tensors in a file in memory, one after the other."""


@dataclass(frozen=True)
class Workers:
    """Processes that read ahead.

    Attributes:
        number: how many; 0: the program's own process reads.
        timeout_minutes: how long one that is waited for may go without getting on.
        setting: the one that says how many.
        progress: called while one that is waited for fetches, so that others know that this process gets on.
    """

    number: int
    timeout_minutes: float
    setting: str = "workers"
    progress: Callable[[], None] = lambda: None


def read_ahead(
    read: Callable[[Wanted], Sample],
    wanted: Iterator[list[Wanted]],
    workers: Workers,
    origin: Origin,
    pin_memory: bool = False,
) -> Generator[Fields]:
    """Yield the batches that are `wanted`, in this order.

    Args:
        read: returns a sample.
        wanted: the samples of each batch.
        workers: the processes that read.
        origin: what is read, for messages.
        pin_memory: whether batches lie where a GPU can fetch them while it computes.

    Raises:
        UserError: what `read` raises; or a process cannot be started, ended, or was silent for too long.
    """
    if workers.number == 0:
        for samples in wanted:
            batch = _stacked([read(sample) for sample in samples])
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if pin_memory else batch
        return
    purpose = f"to read {origin.folder} with {workers.setting}={workers.number}"
    # One more for a moment, the process's own end of its pipe.
    allow_open_files(FILES_A_PROCESS * workers.number + 1, purpose)
    processes: list[_Process] = []
    try:
        for _ in range(workers.number):
            processes.append(_Process(read, workers, origin))
        for process, samples in zip(processes * READ_AHEAD, wanted, strict=False):
            process.ask(samples)
        for process in cycle(processes):
            if not process.asked:
                return
            batch = process.receive(pin_memory)
            for samples in islice(wanted, 1):
                process.ask(samples)
            yield batch
    finally:
        for process in processes:
            process.end()


def _stacked(samples: Sequence[Sample]) -> Fields:
    if len(samples) == 1:
        # The published batch: nothing to copy.
        return {name: tensor[None] for name, tensor in samples[0].items()}
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _transfer(move: Callable[[int, list[memoryview], int], int], memory: int, tensors: Iterable[Tensor]) -> None:
    """Write tensors to a file one after the other (os.pwritev), or read it into them (os.preadv)."""
    offset = 0
    for tensor in tensors:
        rest = tensor.reshape(-1).view(torch.uint8).numpy().data
        # A single call moves 2 GiB at most.
        while rest:
            moved = move(memory, [rest], offset)
            rest, offset = rest[moved:], offset + moved


def _received(pipe: Connection) -> Any:
    """Return what comes next.

    Raises:
        EOFError: the other process has ended, before or in the middle of it.
    """
    try:
        return pipe.recv()
    except OSError as error:
        # The end in the middle of a message is Python's own error, without a number of the system.
        if error.errno is None or isinstance(error, ConnectionError):
            raise EOFError from error
        raise


def begin_forked(parent: int) -> None:
    """Make a process that was just forked one of its own: it ends soon after its parent, and takes nothing of it along.

    Locks of Python, of memory and of loaded libraries are made anew by the fork itself; of CUDA and torch's threads a
    process that reads uses nothing.
    """
    # What is garbage there is the parent's to collect: here its finalisers would end other readers, or call CUDA.
    gc.freeze()
    renew_standard_error()
    end_with(parent)


def end_with(parent: int) -> None:
    """End this process soon after its parent, also while it waits for a disk or a server."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Process:
    """A process that reads: what the program asks it for, and the loop that answers."""

    def __init__(self, read: Callable[[Wanted], Sample], workers: Workers, origin: Origin) -> None:
        self.read, self.origin, self.workers = read, origin, workers
        self.who = f"a process that reads {origin.folder}"
        self.fewer = f"fewer than {workers.setting}={workers.number}, or a smaller batch"
        self.asked: deque[tuple[int, list[Wanted]]] = deque()
        self.parent = os.getpid()
        try:
            # By the time that a memory's next turn comes, its batch has been received.
            self.memories = deque(os.memfd_create("samples") for _ in range(READ_AHEAD))
            # Shared with it: changes while it fetches or waits for who does.
            self.got_on = mmap.mmap(-1, 1)
            self.pipe, its_pipe = Pipe()
            self.identifier = os.fork()
        except OSError as error:
            # fork's "try again" means a limit on processes.
            reason = shortage(error) or f"{error.strerror}, perhaps a limit on processes (ulimit -u) or on memory"
            raise UserError(f"{self.who} cannot be started: {reason}; or use {self.fewer}") from error
        if self.identifier == 0:
            # Never back into the program, whatever happens.
            try:
                self.serve(its_pipe)
                os._exit(0)
            except Exception:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(1)
        # The process's own is then the only one, and its end closes it.
        its_pipe.close()

    def serve(self, pipe: Connection) -> None:
        """Answer requests, in the process, until the parent has ended; it ends this process when it needs no more."""
        # A signal to stop often goes to all processes; the trainer needs its samples until its step is saved.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        begin_forked(self.parent)
        note_by(self.note)
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        with suppress(EOFError, ConnectionError):
            # Other processes may hold the parent's end of the pipe after it.
            while os.getppid() == self.parent:
                if pipe.poll(LOOK_SECONDS):
                    pipe.send(self.answer(*_received(pipe)))

    def note(self) -> None:
        """Tell the program, from the process, that it gets on."""
        self.got_on[0] = (self.got_on[0] + 1) % 256

    def answer(self, memory: int, wanted: list[Wanted]) -> Layout | Exception:
        """Put a batch into memory; returns how it lies there, or what went wrong."""
        try:
            batch = _stacked([self.read(sample) for sample in wanted])
            _transfer(os.pwritev, memory, batch.values())
            return [(name, tensor.shape, tensor.dtype) for name, tensor in batch.items()]
        except UserError as error:
            return error
        except Exception as error:
            if memory_words(error) is not None:
                return UserError(f"{self.who} ran out of memory: use {self.fewer}")
            if (reason := shortage(error)) is not None:
                return UserError(f"{self.who} cannot go on: {reason}")
            return RuntimeError(f"in a process that reads:\n{traceback.format_exc()}")

    def ask(self, wanted: list[Wanted]) -> None:
        """Ask for a batch; a process that has ended is noticed when its batch is waited for."""
        self.asked.append((self.memories[0], wanted))
        self.memories.rotate(-1)
        with suppress(ConnectionError):
            self.pipe.send(self.asked[-1])

    def receive(self, pin_memory: bool) -> Fields:
        """Return the batch that was asked for first."""
        memory, wanted = self.asked.popleft()
        place = f"{self.origin.where(wanted[0].position)}{' or another of its batch' if len(wanted) > 1 else ''}"
        waited, before, minutes = 0.0, self.got_on[0], self.workers.timeout_minutes
        # In small steps: time in which the whole job was suspended does not count.
        while not self.pipe.poll(LOOK_SECONDS):
            waited += LOOK_SECONDS
            if self.got_on[0] != before:
                waited, before, minutes = 0.0, self.got_on[0], self.workers.timeout_minutes
                self.workers.progress()
            if waited >= 60 * minutes:
                raise UserError(
                    f"{self.who} has sent nothing for {minutes:g} minutes, at {place}: it is stopped, or the disk does "
                    "not answer; look for the cause on this machine, or raise timeout_minutes"
                )
        try:
            answer: Layout | Exception = _received(self.pipe)
        except EOFError:
            raise UserError(f"{self.who} {self.cause_of_end(place)}") from None
        if isinstance(answer, Exception):
            raise answer
        batch = {name: torch.empty(shape, dtype=kind, pin_memory=pin_memory) for name, shape, kind in answer}
        _transfer(os.preadv, memory, batch.values())
        return batch

    def cause_of_end(self, place: str) -> str:
        try:
            # It stays there until `end`, so that its identifier is not given to another.
            end = os.waitid(os.P_PID, self.identifier, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            # Where the program was started with SIGCHLD ignored, nobody hears how a process ended.
            end = None
        if end is None or end.si_code == os.CLD_EXITED:
            code = "unknown" if end is None else end.si_status
            return f"ended (exit code {code}) at {place}; look for the cause above"
        number = signal.Signals(end.si_status)
        if number == signal.SIGKILL:
            return f"was killed, perhaps because memory ran out: use {self.fewer}"
        if number in CRASHES:
            return (
                f"crashed ({number.name}) at {place}; a damaged file may have crashed its decoder: leave it out, "
                "and where it is packed, pack again"
            )
        return f"was ended by a signal from outside ({number.name}); start again"

    def end(self) -> None:
        """End it at once, for it has nothing to put away; one that hangs in a disk's driver is left to its end."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.identifier, signal.SIGKILL)
            deadline = time.monotonic() + LOOK_SECONDS
            while os.waitpid(self.identifier, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS / 1000)
        self.pipe.close()
        self.got_on.close()
        for memory in self.memories:
            os.close(memory)
