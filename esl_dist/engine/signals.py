"""SIGTERM and SIGUSR1 as a wish to stop: noted when it comes, granted between two steps.

A cluster sends one of them before it takes a machine away, and to one rank only, maybe. So the wish is summed over
the ranks once a step, and all of them stop after the same one. One that comes during the start is granted after the
first step: a rank that dies while the others wait for it costs them the whole timeout.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopWish:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        """Begin without a wish."""
        self.asked = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note the signal: the handler."""
        self.asked = True


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Note the signals that come while the block runs, in the main thread of the process."""
    wish = StopWish()
    before = {number: signal.signal(number, wish.note) for number in STOP_SIGNALS}
    yield wish
    # After an error they stay noted: a signal must not cut short what is said and saved then.
    for number, handler in before.items():
        signal.signal(number, handler)
