"""Ctrl-C while a program still imports: one line and the exit code of an interruption, not the place in some library.

It imports nothing but what Python has loaded anyway, so that a program can call it before all other imports.
"""

import os
import signal
from types import FrameType

EXIT_INTERRUPTED = 130


def end_at_interrupt() -> None:
    """End this process at Ctrl-C, at once, until `give_interrupt_back`; one that is deaf to it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def give_interrupt_back() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(EXIT_INTERRUPTED)
