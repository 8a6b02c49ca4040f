"""What processes of tests do; they import no more than this to do it."""

import os
import time


def negative(number: int) -> int:
    return -number


def end_by(number: int) -> None:
    """Do as a process that the kernel kills (by a signal), or one that leaves without a word (by a code)."""
    if number < 0:
        os.kill(os.getpid(), -number)
        time.sleep(600)  # it may be another thread that gets the signal
    os._exit(number)


def sleep_long(number: int) -> None:
    time.sleep(600)
