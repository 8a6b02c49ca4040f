"""SIGTERM, SIGUSR1, SIGHUP and Ctrl-C as a request to stop: noted when it comes, granted between two steps.

A cluster sends one of the first two before it takes a machine away, and to one rank only, maybe; a terminal that is
closed sends SIGHUP. So the request is summed over the ranks once a step, and all of them stop after the same one. One
that comes during the start is granted after the first step: a rank that dies while the others wait for it costs them
the whole timeout.

Ctrl-C comes from a person who waits: during the start, when there is nothing to save, it ends the program; then the
first one is a request like the others, and the second ends the program at once.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from esl_dist.endings import EXIT_INTERRUPTED, ending, note_end_soon
from esl_dist.environment import started_by_torchrun
from esl_dist.errors import LostRankError
from esl_dist.ranks.collectives import is_main
from esl_dist.stop_signals import STOP_SIGNALS, keep_end

ONE_PRESS_SECONDS = 2.0
"""In which torchrun may tell of one Ctrl-C more than once: it passes on SIGINT, and SIGTERM when it ends itself."""

END_SECONDS = 3.0
"""From a second Ctrl-C to the end of the process, whatever its disk or its collectives do."""

LAST_NOTE_SECONDS = 1.0
"""Of these, for the note of a process that does not come to its end by itself."""


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        asked: whether it was, by any signal.
        interrupted: whether by Ctrl-C.
        has_begun: whether the first step has: from then on the training loop grants the request.
    """

    def __init__(self) -> None:
        """Begin without a request."""
        self.asked, self.interrupted, self.has_begun = False, False, False
        self._process, self._pressed = os.getpid(), 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note the signal: the handler.

        Raises:
            KeyboardInterrupt: a Ctrl-C that is not to wait for the step.
        """
        if os.getpid() != self._process:
            # A reading process that has not set its own handlers yet.
            return
        self.asked = True
        # Pressed once more, torchrun sends not another SIGINT to its ranks, but SIGTERM.
        if number == signal.SIGINT or (self.interrupted and started_by_torchrun()):
            self._press()

    def _press(self) -> None:
        before, self.interrupted = self.interrupted, True
        now = time.monotonic()
        if before and started_by_torchrun() and now - self._pressed < ONE_PRESS_SECONDS:
            return
        self._pressed = now
        if before or not self.has_begun:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            limit = threading.Timer(END_SECONDS - LAST_NOTE_SECONDS, _end)
            limit.daemon = True
            limit.start()
            raise KeyboardInterrupt
        if is_main():
            _tell("interrupted: finishing the step and saving; press again to end at once")


def _tell(text: str) -> None:
    # Not print: the signal may have come inside of one. A bar leaves the cursor at the end of its line.
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode() if sys.stderr.isatty() else f"{text}\n".encode())


def _end() -> None:
    note_end_soon(ending(KeyboardInterrupt()), LAST_NOTE_SECONDS)
    if is_main():
        _tell("interrupted; the same command goes on from what is saved")
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note the signals that come while the block runs, in the main thread of the process.

    Raises:
        KeyboardInterrupt: also where this rank was interrupted and then lost another one, which had not begun.
    """
    request = StopRequest()
    # A shell starts its background jobs deaf to Ctrl-C, and nohup all of its to the end of the terminal.
    deaf = {number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN}
    before = {number: signal.signal(number, request.note) for number in {*STOP_SIGNALS, signal.SIGINT} - deaf}
    try:
        yield request
    except LostRankError as error:
        if request.interrupted:
            raise KeyboardInterrupt from error
        raise
    # After an error they stay noted: a signal must not cut short what is said and saved then.
    if not keep_end():
        for number, handler in before.items():
            signal.signal(number, handler)
