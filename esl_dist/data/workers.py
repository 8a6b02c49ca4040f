"""Reading ahead: processes that read and decode samples while the network computes.

torch's DataLoader is not used for it. It sends batches from a thread that, where it cannot, prints a traceback and
drops one that is then waited for without end; and it depends on named sockets, whose paths TMPDIR can make too long, on
/dev/shm, which has 64 MB in a container, and on an open file for each tensor. Here a process answers every request
itself, with a batch or with what went wrong. Batches lie in memory without a name, on no file system. The end of a
process closes its sockets, so it is noticed at once, and its exit status says what it was.
"""

import errno
import mmap
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from math import prod
from multiprocessing.connection import Connection, Pipe

import cv2
import torch
from torch import Tensor

from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError, memory_words
from esl_dist.machine import allow_open_files, shortage

READ_AHEAD = 2
"""Batches that each process is asked for before the first of them is used."""

LOOK_SECONDS = 1.0
"""How often a process that waits looks whether that makes sense any more."""

FILES_A_PROCESS = 2
"""That the program keeps open for each process that reads: one end of its requests, one of its replies."""

ALIGNMENT = 64
"""Bytes; where a tensor may begin in shared memory."""

SMALL_BYTES = 2**16
"""Tensors of so many bytes are copied out of shared memory: else they would keep that of their pictures."""

REPLY_BYTES = 2**16
LONGEST_TEXT = 2**14

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""Signals of a process that went wrong by itself."""

Sample = Mapping[str, Tensor]
Fields = dict[str, Tensor]
Places = list[tuple[str, torch.dtype, tuple[int, ...], int]]
"""Name, type, shape and offset in bytes of the tensors in shared memory."""


@dataclass(frozen=True)
class Workers:
    """Processes that read ahead.

    Attributes:
        number: how many; 0: the program's own process reads.
        timeout_minutes: how long a batch may take.
        setting: the one that says how many.
    """

    number: int
    timeout_minutes: float
    setting: str = "workers"


@dataclass(frozen=True)
class _Process:
    identifier: int
    requests: Connection
    replies: socket.socket


def stacked(samples: Sequence[Sample]) -> Fields:
    """Return the tensors of samples as those of one batch."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def read_ahead(
    read: Callable[[int], Sample], positions: Iterator[list[int]], workers: Workers, shards: ShardReader
) -> Generator[Fields]:
    """Yield the batches named by `positions`, in this order.

    Args:
        read: returns the sample at a position.
        positions: those of the samples of each batch.
        workers: at least one.
        shards: what is read, for messages.

    Raises:
        UserError: what `read` raises; or a process cannot be started, ended, or was silent for too long.
    """
    allow_open_files(
        FILES_A_PROCESS * workers.number, f"to read {shards.folder} with {workers.setting}={workers.number}"
    )
    processes: list[_Process] = []
    try:
        for _ in range(workers.number):
            processes.append(_start(read, workers, shards))
        turns = zip(cycle(processes), positions)
        asked = deque(_ask(*turn) for turn in islice(turns, READ_AHEAD * workers.number))
        while asked:
            process, wanted = asked.popleft()
            batch = _receive(process, wanted, workers, shards)
            asked.extend(_ask(*turn) for turn in islice(turns, 1))
            yield batch
    finally:
        for process in processes:
            _end(process)


def _start(read: Callable[[int], Sample], workers: Workers, shards: ShardReader) -> _Process:
    parent = os.getpid()
    try:
        requested, requests = Pipe(duplex=False)
        replies, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        identifier = os.fork()
    except OSError as error:
        # fork's "try again" means a limit on processes.
        reason = shortage(error) or f"{error.strerror}, perhaps a limit on processes (ulimit -u) or on memory"
        raise UserError(
            f"a process that reads {shards.folder} cannot be started: {reason}; or take {_fewer(workers)}"
        ) from error
    if identifier == 0:
        # Never back into the program, whatever happens.
        try:
            requests.close()
            replies.close()
            _serve(requested, answers, parent, lambda wanted: _reply(read, wanted, workers, shards))
            os._exit(0)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    requested.close()
    answers.close()
    return _Process(identifier, requests, replies)


def _serve(
    requested: Connection,
    answers: socket.socket,
    parent: int,
    reply: Callable[[list[int]], tuple[Places | Exception, int | None]],
) -> None:
    """Answer requests until the parent has ended; it ends this process when it needs no more."""
    # A signal to stop often goes to all processes; the trainer needs its samples until its step is saved.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with suppress(EOFError, ConnectionError):
        while os.getppid() == parent:
            if requested.poll(LOOK_SECONDS):
                _send(answers, *reply(requested.recv()))


def _send(answers: socket.socket, answer: Places | Exception, memory: int | None) -> None:
    try:
        socket.send_fds(answers, [pickle.dumps(answer)], [] if memory is None else [memory])
    except ConnectionError:
        raise
    except OSError as error:
        # More descriptors are on their way, in all processes of this user, than one may open.
        answers.send(pickle.dumps(error))
    finally:
        if memory is not None:
            os.close(memory)


def _reply(
    read: Callable[[int], Sample], wanted: list[int], workers: Workers, shards: ShardReader
) -> tuple[Places | Exception, int | None]:
    """Return where the tensors of a batch lie, and the descriptor of the memory; or what went wrong."""
    try:
        return _shared([read(position) for position in wanted])
    except UserError as error:
        return UserError(str(error)[:LONGEST_TEXT]), None
    except Exception as error:
        if memory_words(error) is not None:
            return UserError(f"a process that reads {shards.folder} found no memory: take {_fewer(workers)}"), None
        if (reason := shortage(error)) is not None:
            return UserError(f"a process that reads {shards.folder} cannot go on: {reason}"), None
        return RuntimeError(f"in a process that reads:\n{traceback.format_exc()[-LONGEST_TEXT:]}"), None


def _shared(samples: Sequence[Sample]) -> tuple[Places, int]:
    """Put the batch of some samples into new memory; returns where its tensors lie, and a descriptor of the memory."""
    places: Places = []
    end = 0
    for name, first in samples[0].items():
        places.append((name, first.dtype, (len(samples), *first.shape), end))
        end += -(-len(samples) * first.nbytes // ALIGNMENT) * ALIGNMENT
    memory = os.memfd_create("samples")
    try:
        os.ftruncate(memory, end)
        for name, tensor in _tensors(mmap.mmap(memory, end), places).items():
            torch.stack([sample[name] for sample in samples], out=tensor)
    except BaseException:
        os.close(memory)
        raise
    return places, memory


def _tensors(memory: mmap.mmap, places: Places) -> Fields:
    """Return tensors in shared memory, which they keep."""
    return {
        name: torch.frombuffer(memory, dtype=dtype, count=prod(shape), offset=offset).view(shape)
        for name, dtype, shape, offset in places
    }


def _ask(process: _Process, wanted: list[int]) -> tuple[_Process, list[int]]:
    # A process that has ended is noticed when its batch is waited for.
    with suppress(ConnectionError):
        process.requests.send(wanted)
    return process, wanted


def _receive(process: _Process, wanted: list[int], workers: Workers, shards: ShardReader) -> Fields:
    # In small steps: time in which the whole job was suspended does not count.
    process.replies.settimeout(LOOK_SECONDS)
    waited = 0.0
    while True:
        try:
            content, received, flags, _ = socket.recv_fds(process.replies, REPLY_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            break
        except ConnectionError:
            raise _ended(process, wanted, workers, shards) from None
        except TimeoutError:
            waited += LOOK_SECONDS
            if waited >= 60 * workers.timeout_minutes:
                raise UserError(
                    f"a process that reads {shards.folder} has sent nothing for {workers.timeout_minutes:g} minutes, "
                    f"at {_named(wanted, shards)}: it is stopped, or the disk does not answer; look for the cause in "
                    "this machine, or raise timeout_minutes"
                ) from None
    if not content:
        raise _ended(process, wanted, workers, shards)
    answer: Places | Exception = pickle.loads(content)
    try:
        if isinstance(answer, Exception):
            raise answer
        if flags & socket.MSG_CTRUNC or not received:
            # The kernel drops what it cannot open here.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        shared = _tensors(mmap.mmap(received[0], 0), answer)
        return {name: one.clone() if one.nbytes <= SMALL_BYTES else one for name, one in shared.items()}
    except OSError as error:
        reason = "there is no memory" if memory_words(error) is not None else shortage(error)
        if reason is None:
            raise
        raise UserError(
            f"a batch of {shards.folder} cannot be received: {reason}; or take {_fewer(workers)}"
        ) from error
    finally:
        for memory in received:
            os.close(memory)


def _ended(process: _Process, wanted: list[int], workers: Workers, shards: ShardReader) -> UserError:
    """Return what to say of a process that has ended without an answer."""
    who = f"a process that reads {shards.folder}"
    try:
        # It stays there until `_end`, so that its identifier is not given to another.
        end = os.waitid(os.P_PID, process.identifier, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        # Where the program was started with SIGCHLD ignored, nobody hears how a process ended.
        end = None
    if end is None or end.si_code == os.CLD_EXITED:
        code = "unknown" if end is None else end.si_status
        return UserError(f"{who} ended (exit code {code}) at {_named(wanted, shards)}; look for the cause above")
    number = signal.Signals(end.si_status)
    if number == signal.SIGKILL:
        return UserError(f"{who} was killed, perhaps for want of memory: take {_fewer(workers)}")
    if number in CRASHES:
        return UserError(
            f"{who} crashed ({number.name}) at {_named(wanted, shards)}; a file may be damaged in a way that its "
            "decoder does not bear: leave it out and pack again"
        )
    return UserError(f"{who} was ended by a signal from outside ({number.name}); start again")


def _named(wanted: list[int], shards: ShardReader) -> str:
    more = " or another of its batch" if len(wanted) > 1 else ""
    return f"{shards.where(wanted[0])}{more}"


def _fewer(workers: Workers) -> str:
    return f"fewer than {workers.setting}={workers.number}, or a smaller batch"


def _end(process: _Process) -> None:
    """End a process at once, for it has nothing to put away; one that hangs in a disk's driver is left to its end."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(process.identifier, signal.SIGKILL)
        deadline = time.monotonic() + LOOK_SECONDS
        while os.waitpid(process.identifier, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 1000)
    process.requests.close()
    process.replies.close()
