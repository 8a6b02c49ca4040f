"""Processes that work through a list: results in order, few of them waiting, and a message when a process dies.

A killed process (the kernel's way out when memory is short) ends the work within a second, for what it held is lost;
Ctrl-C ends all of them at once, and so does the end of the process that started them, however it comes.
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2

from esl_dist.data.sources import size_in_header
from esl_dist.errors import UserError
from esl_dist.machine import free_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

READING_THREADS = 16
"""Files that are read at once where little is done with them: a slow disk is waited for, not a processor."""
WAITING_RESULTS = 16
"""Results a packing process may be ahead of the writer."""
PROCESS_BYTES = 200 * 10**6
BYTES_A_PIXEL = 24
"""What a packing process takes at most: without a picture, and for each pixel of one."""


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield, in order, the results of a function that reads files; an end before the last one drops what waits."""
    with ThreadPoolExecutor(READING_THREADS) as executor:
        yield from executor.map(function, items)


@contextmanager
def worker_processes(number: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Start processes, and end them with the block; an exception in the block kills them in the middle of their work.

    Yields a function as `map`: it gives the results in order, and few of them wait for a slow reader.

    Raises:
        UserError: they cannot be started, or one of them died.
    """
    # "spawn", not "fork": OpenCV and PyTorch may hold locks in threads that a forked child would wait for.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, initializer=_begin) as executor:
        # Python 3.14 has a method to kill them; before, there is no other way to know them all, dead ones too.
        processes = executor._processes
        try:
            _start(executor, number)
            yield partial(in_order, executor, WAITING_RESULTS * number)
        except BrokenProcessPool:
            # The executor ends the others itself.
            executor.shutdown()
            raise UserError(_cause_of_death({one.exitcode or 0 for one in processes.values()}, number)) from None
        except BaseException:
            for process in processes.values():
                process.kill()
            executor.shutdown(cancel_futures=True)
            raise


def in_order(
    executor: Executor, ahead: int, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield the results in the order of `items`; unlike `Executor.map`, at most `ahead` are begun before their turn."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def affordable(number: int, pictures: Iterable[Path], largest_pixels: int) -> int:
    """Return how many of `number` processes the free memory allows, at least one; a warning says if it is fewer.

    Args:
        number: how many are asked for.
        pictures: what each of them may have to decode; the largest counts.
        largest_pixels: beyond which none is decoded.
    """
    pixels = min(max(width * height for width, height in in_threads(size_in_header, pictures)), largest_pixels)
    needed, free = PROCESS_BYTES + BYTES_A_PIXEL * pixels, free_memory()
    allowed = max(1, min(number, int(free / needed)))
    if allowed < number or needed > free:
        print(
            f"warning: {allowed} of {number} packing processes are started, for each may take {needed / 1e9:.1f} GB "
            f"for the largest picture ({pixels / 1e6:.1f} megapixels) and {free / 1e9:.1f} GB of memory are free",
            file=sys.stderr,
        )
    return allowed


def _start(executor: Executor, number: int) -> None:
    """Start all processes, without their share of a Ctrl-C, which is for the process that ends them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(number):
            executor.submit(os.getpid)
    except OSError as error:
        raise UserError(
            f"{number} packing processes cannot be started ({error.strerror}); take fewer, by processes=…"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _cause_of_death(codes: set[int], number: int) -> str:
    # The executor ends those that are left with SIGTERM.
    codes -= {0, -signal.SIGTERM, -signal.SIGKILL}
    if not codes:
        return (
            f"a packing process was killed, perhaps for want of memory: take fewer processes, by processes=… "
            f"(now {number}); what is written so far is whole, the same command starts again"
        )
    code = min(codes)
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"a packing process {end} in the middle of its work; start again with processes=1 to see at which file"


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # OpenCV's own threads would fight with those of the other processes.
    cv2.setNumThreads(0)
    # What is wrong with a file is told once, by its name; the libraries below OpenCV write into the progress bar.
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
