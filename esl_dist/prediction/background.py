"""Work behind the network's back: what is made of its results is computed, encoded and written by other threads.

The main thread has the network predict the next picture meanwhile. torch, OpenCV, zlib and files let other threads run.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from esl_dist.environment import launch
from esl_dist.machine import usable_processors

Result = TypeVar("Result")

MOST_THREADS = 4
"""Of a rank; as many encode faster than one GPU predicts."""


def in_background(tasks: Iterable[Callable[[], Result]]) -> Generator[Result]:
    """Call each task in one of a few threads, and yield the results in the order of the tasks.

    The next task is taken while those before it are at work, one more than there are threads at most: so much of the
    results is in memory. What a task raises is raised here, in its turn; those after it are not begun. Whoever may not
    take all results closes this, or the threads stay until the program ends.
    """
    threads = min(MOST_THREADS, max(1, usable_processors() // launch().local_world_size))
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def on_host(compute: Callable[[], tuple[Tensor, ...]], device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that gives what `compute` gives, on the host, in whichever thread it is called.

    On a GPU, `compute` is called at once, which only queues its work, and the function waits for its results to be
    copied. On a CPU it is called by the function, so that the calling thread does the work.
    """
    if device.type != "cuda":
        return torch.inference_mode()(compute)
    # Copies to pinned memory, which torch takes for them, are queued as well.
    copies = tuple(result.to("cpu", non_blocking=True) for result in compute())
    # One for which a thread sleeps: it would take a core by asking again and again.
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> tuple[Tensor, ...]:
        # A new thread is at GPU 0, where its first call would take memory for a context.
        with torch.cuda.device(device):
            copied.synchronize()
        return copies

    return wait
