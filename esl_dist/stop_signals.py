"""Signals to stop, for what a program does not decide itself: noted before it dies of them, ignored when it ends.

A training takes them as a request (`training.stop_request`); all else ends at once, as it would without this module.
But where a file is named for it (`endings`), this is said there first, by a thread, for the main thread may be in a
collective. And a signal that comes when the result is written, while ranks part and Python shuts down, would turn a
finished program into a failed one, which a cluster starts again; or a mistake into a death by signal, where a launcher
ends the other ranks after the first. A program that starts another one is stopped when that one has come to its end.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO, NoReturn

from esl_dist.endings import EXIT_LOST_RANK, EXIT_STOPPED, NOTE_SECONDS, PROGRAM, Ending, note_end_soon
from esl_dist.environment import started_by_torchrun

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

WRITING_SECONDS = 8.0
"""In which a process that leaves at once still writes what it has begun to write."""

_noted = threading.Event()
_owns_process = False


def own_process() -> None:
    """Say that this process is a program's, and no notebook's or test's: it ends when the program does."""
    global _owns_process
    _owns_process = True


def owns_process() -> bool:
    """Say whether this process is a program's (`own_process`)."""
    return _owns_process


def keep_end() -> bool:
    """Ignore signals from here on, for the end is certain; says whether it did, as only a program's own process may."""
    if _owns_process:
        for number in (*STOP_SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return _owns_process


def leave(code: int) -> NoReturn:
    """End this process with an exit code; at once, where that is noted (`endings.Program.leaves_at_once`).

    At once is after a checkpoint that is being written, if that takes no longer than `WRITING_SECONDS`.
    """
    if PROGRAM.leaves_at_once and _owns_process:
        finish_writing()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def finish_writing() -> None:
    """Wait for threads that Python itself would wait for at its end, such as one that writes a checkpoint.

    No longer than `WRITING_SECONDS`, and not for the main thread, which may be in a collective.
    """
    deadline = time.monotonic() + WRITING_SECONDS
    for thread in threading.enumerate():
        if not thread.daemon and thread not in (threading.main_thread(), threading.current_thread()):
            thread.join(max(deadline - time.monotonic(), 0))


def run_to_its_end(
    words: Sequence[str], environment: Mapping[str, str] | None = None, stdout: IO[str] | None = None
) -> int:
    """Run a program and return its exit code; a stop of this one stops it first, and it ends itself: a training saves.

    Args:
        words: its command line.
        environment: its variables; None: those of this process.
        stdout: where it prints; None: where this process does.
    """
    process, stops = subprocess.Popen(words, env=environment, stdout=stdout), list[int]()

    def stop(number: int, frame: FrameType | None) -> None:
        # Not waited for here, where it is waited for already.
        stops.append(number)
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # A terminal gives it to both.
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if stops:
        os.kill(os.getpid(), signal.SIGTERM)
    return code


def note_stop_signals() -> None:
    """Have this process note that it was stopped before a signal ends it, unless it is deaf to that signal."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_note, args=(reading,), daemon=True).start()


def _end(number: int, frame: FrameType | None) -> None:
    _noted.wait(2 * NOTE_SECONDS)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _note(reading: int) -> None:
    while number := os.read(reading, 1):
        if signal.getsignal(number[0]) is _end:
            note_end_soon(_ending(number[0]))
            _noted.set()
            time.sleep(NOTE_SECONDS)
            # The main thread has not come to its handler.
            os._exit(128 + number[0])


def _ending(number: int) -> Ending:
    words = f"stopped by {signal.Signals(number).name}"
    if number == signal.SIGTERM and started_by_torchrun() and os.environ.get("WORLD_SIZE") != "1":
        words += ", which torchrun sends when it is told to stop, and when another rank was lost"
        return Ending("stopped", EXIT_LOST_RANK, words)
    return Ending("stopped", EXIT_STOPPED, words)


def _forget() -> None:
    """Leave a process that was forked, such as one that reads samples, with signals of its own."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)
