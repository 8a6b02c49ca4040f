"""What ranks do together: sum, agree, wait for each other, speak with one voice.

What the host knows never crosses a device: it travels over gloo, in a group of its own, so that it neither waits for
kernels nor depends on what batch norm and gradients send meanwhile.
"""

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from esl_dist.early import line_end
from esl_dist.errors import UserError
from esl_dist.ranks.heartbeat import PROGRESS

LONGEST_TEXT = 200
"""Bytes of a text that ranks tell each other."""

HOST, GRADIENTS = "host", "gradients"
"""Groups of all ranks beside the default one: collectives of one group do not wait for those of another."""

BEAT_SECONDS = 1.0
MOST_BEATS = 3600
"""In which such a thing as a compilation counts as progress; after that, other ranks wait for it as for a hung one."""

_GROUPS: dict[str, dist.ProcessGroup] = {}


def note_progress() -> None:
    """Tell the other ranks, which may be waiting, that this one gets on."""
    PROGRESS.worked()


@contextmanager
def noting_progress() -> Iterator[None]:
    """Let the other ranks know, beat by beat, that this one gets on with what says nothing of itself."""
    done = threading.Event()

    def note() -> None:
        for _ in range(MOST_BEATS):
            if done.wait(BEAT_SECONDS):
                return
            note_progress()

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def note_place(place: str) -> None:
    """Tell the other ranks how far this one has come; should it get lost, they name the place."""
    PROGRESS.place = place


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this is rank 0, the one that writes and prints."""
    return rank() == 0


def print_on_main(text: str) -> None:
    """Print a line, on rank 0 only."""
    if is_main():
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning to standard error, on rank 0 only."""
    if is_main():
        print(f"{line_end()}warning: {text}", file=sys.stderr, flush=True)


def make_groups(timeout: timedelta) -> None:
    """Make the groups beside the default one; called on every rank, when that has begun.

    Args:
        timeout: of their collectives; a new group has torch's own unless it is told another.
    """
    for name, backend in {HOST: "gloo", GRADIENTS: None}.items():
        group = dist.new_group(backend=backend, timeout=timeout)
        assert isinstance(group, dist.ProcessGroup), "all ranks are in it"
        _GROUPS[name] = group


def group_of_ranks(name: str) -> dist.ProcessGroup | None:
    """Return the group of all ranks of that name, `HOST` or `GRADIENTS`; None, the default one, before that."""
    return _GROUPS.get(name)


@dataclass(frozen=True)
class BegunSum:
    """A sum over all ranks that travels while this one goes on with its work."""

    _total: Tensor
    _work: dist.Work | None

    def wait(self, what: str) -> Tensor:
        """Return the sum when it is there; `what` names the place in messages about a rank that does not come."""
        if self._work is not None:
            with PROGRESS.waiting(what):
                self._work.wait()
        return self._total


def begin_sum(tensor: Tensor, group: str = HOST) -> BegunSum:
    """Begin to add up `tensor` over all ranks; the argument is not changed.

    Args:
        tensor: in the host's memory or, in the group of gradients, on the device, which then waits for the sum.
        group: `HOST` or `GRADIENTS`; all ranks begin the sums of a group in the same order.
    """
    total = tensor.detach().clone()
    if world_size() == 1:
        return BegunSum(total, None)
    return BegunSum(total, dist.all_reduce(total, group=group_of_ranks(group), async_op=True))


def sum_over_ranks(tensor: Tensor, what: str = "a sum over ranks") -> Tensor:
    """Return the sum of `tensor` over all ranks, on every rank; the argument is not changed.

    `what` names the place in messages about a rank that does not come.
    """
    if not tensor.is_cuda:
        return begin_sum(tensor).wait(what)
    total = tensor.detach().clone()
    if world_size() > 1:
        with PROGRESS.waiting(what):
            dist.all_reduce(total)
            torch.cuda.current_stream().synchronize()
    return total


def broadcast_flags(flags: list[bool]) -> list[bool]:
    """Return rank 0's answers on every rank, where each might see another state of the files."""
    own = torch.tensor(flags, dtype=torch.int64)
    return [bool(flag) for flag in sum_over_ranks(own if is_main() else torch.zeros_like(own)).tolist()]


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        group = group_of_ranks(HOST)
        with PROGRESS.waiting("the end of a part of the job"):
            dist.barrier(group=group)


def require_same_on_ranks(text: str, what: str) -> None:
    """Make sure that every rank was given the same.

    Raises:
        UserError: on every rank, naming the ranks whose `text` is not rank 0's.
    """
    digests = gather_texts(hashlib.sha256(text.encode()).hexdigest())
    others = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UserError(f"ranks {others} were started with another {what} than rank 0; start all with the same")


def gather_texts(text: str) -> list[str]:
    """Return what every rank says, in their order; of each at most `LONGEST_TEXT` bytes."""
    own = text.encode("utf-8", "replace")[:LONGEST_TEXT]
    table = torch.zeros(world_size(), LONGEST_TEXT, dtype=torch.int64)
    table[rank(), : len(own)] = torch.tensor(list(own), dtype=torch.int64)
    return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in sum_over_ranks(table).tolist()]
