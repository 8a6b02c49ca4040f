"""What a program makes of its process before all else: Ctrl-C while it still imports, and streams that never end it.

It imports only what Python loads in a moment, so that a program can call it before all other imports. A result is
written before it is printed, so that nobody reads the print (`| head`), or that a terminal lacks a character (LANG=C,
PYTHONIOENCODING=ascii), is no reason to fail.
"""

import io
import os
import signal
import sys
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130

_LEFT_OPEN: list[object] = []
"""Streams that are not closed."""

STATE_FILE = "ESL_DIST_STATE"
"""Variable of the environment that names a file in which a program says how it gets on (`esl_dist.endings`)."""

COMPLETION_VARIABLE = "_ESL_DIST_COMPLETE"
"""As click makes it of the command's name: set by the script of a shell that asks what a word may become."""


def end_at_interrupt() -> None:
    """End this process at Ctrl-C, at once, until `give_interrupt_back`; one that is deaf to it stays so.

    Where a file is named for it, it is noted there that the program runs.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    if os.environ.get(STATE_FILE):
        from esl_dist import endings, stop_signals

        endings.begin()
        stop_signals.note_stop_signals()


def give_interrupt_back() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
        if os.environ.get(STATE_FILE):
            from esl_dist import endings

            endings.note_end_soon(endings.ending(KeyboardInterrupt()))
    finally:
        os._exit(EXIT_INTERRUPTED)


def make_streams_robust() -> None:
    """Let standard output and error take every character, and go on without a reader; call it before anything is said.

    What was put in their places, by a test or a notebook, stays, and learns to take every character.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed by who started the program: the next file to be opened would get its number, and the prints.
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, stream := _opened(descriptor, stream))
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def renew_standard_error() -> None:
    """Give a process just forked a stream of its own: a thread of its parent may hold the old one's lock for ever.

    What was put in the stream's place, by a test or a notebook, stays.
    """
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    if isinstance(raw, io.FileIO) and raw.fileno() == 2:
        # To close the old one, as its last reference would, takes its lock.
        _LEFT_OPEN.append(sys.stderr)
        sys.stderr = _stream(2, sys.stderr.encoding)
        sys.stderr.reconfigure(errors="backslashreplace")


def line_end() -> str:
    """Return what makes the next text on standard error begin a line: a bar leaves it within one."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    return "\n" if isinstance(raw, _Descriptor) and raw.is_within_line else ""


def _opened(descriptor: int, before: io.TextIOWrapper | None) -> io.TextIOWrapper:
    if before is not None:
        before.flush()
    return _stream(descriptor, "utf-8" if before is None else before.encoding)


def _stream(descriptor: int, encoding: str) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Descriptor(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(raw, encoding, line_buffering=descriptor == 2 or os.isatty(descriptor))


class _Descriptor(io.FileIO):
    """A stream's descriptor, which stays open; what nobody reads any more, or no disk takes, is thrown away."""

    _is_lost = False
    is_within_line = False

    def write(self, content: Any) -> int:
        self.is_within_line = bytes(memoryview(content)[-1:]) not in (b"", b"\n")
        try:
            if not self._is_lost:
                return super().write(content) or 0
        except OSError as error:
            self._is_lost = True
            if not isinstance(error, BrokenPipeError):
                name = "standard error" if self.fileno() == 2 else "standard output"
                raise OSError(error.errno, error.strerror, name) from error
        return memoryview(content).nbytes
