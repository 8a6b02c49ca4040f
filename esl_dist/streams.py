"""Standard output and error that never end a program for the way they are read.

A result is written before it is printed, so that nobody reads the print (`| head`), or that a terminal lacks a
character (LANG=C, PYTHONIOENCODING=ascii), is no reason to fail.
"""

import io
import os
import sys
from typing import Any


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
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _opened(1, "standard output", sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _opened(2, "standard error", sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _opened(descriptor: int, name: str, before: Any) -> io.TextIOWrapper:
    encoding = "utf-8" if before is None else before.encoding
    line_buffering = descriptor == 2 or os.isatty(descriptor)
    if before is not None:
        before.flush()
    return io.TextIOWrapper(io.BufferedWriter(_Descriptor(descriptor, name)), encoding, line_buffering=line_buffering)


class _Descriptor(io.FileIO):
    """A stream's descriptor, which stays open; what nobody reads any more, or no disk takes, is thrown away."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._name, self._is_lost = name, False

    def write(self, content: Any) -> int:
        if self._is_lost:
            return memoryview(content).nbytes
        try:
            return super().write(content) or 0
        except OSError as error:
            self._is_lost = True
            if isinstance(error, BrokenPipeError):
                return memoryview(content).nbytes
            raise OSError(error.errno, error.strerror, self._name) from error
