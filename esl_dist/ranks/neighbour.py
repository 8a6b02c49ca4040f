"""A connection to the next rank that breaks at once when that rank's process dies.

NCCL notices nothing of it within a machine. Gloo does, and wakes who waits for a message to come, but not who waits in
the middle of one, or for leave to send it (`Pair::signalException` in its tcp/pair.cc); every collective sends. So each
rank waits, in a thread, for one word of the rank after it, over gloo; the word comes when that rank parts in good
order. A process that is killed breaks the connection; one that is stopped, or a job that is suspended as a whole, does
not.
"""

import threading
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from esl_dist.config import A_YEAR
from esl_dist.endings import within

PARTING_SECONDS = 2.0
"""For a word to a rank that may just have been killed."""


class Neighbour:
    """The rank after this one in a ring, as far as a connection tells of it."""

    def __init__(self) -> None:
        """Begin to listen; called on every rank, after they have joined."""
        rank, size = dist.get_rank(), dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=timedelta(minutes=A_YEAR))
        assert isinstance(group, dist.ProcessGroup), "all ranks are in it"
        self._group = group
        self._next, self._before = (rank + 1) % size, (rank - 1) % size
        self._failure: str | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def failure(self) -> str | None:
        """Return how the connection broke; None while it holds."""
        return self._failure

    def part(self) -> None:
        """Tell the rank before this one that this one parts in good order."""

        def tell() -> None:
            # That rank may be gone already, and need not hear it.
            with suppress(RuntimeError):
                dist.send(torch.ones(1), self._before, self._group)

        within(PARTING_SECONDS, tell)

    def _listen(self) -> None:
        try:
            dist.recv(torch.zeros(1), self._next, self._group)
        except RuntimeError as error:
            self._failure = str(error)
