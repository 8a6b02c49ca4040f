"""What ranks do together: sum, agree, wait for each other, speak with one voice.

Gradients are summed here and not by DistributedDataParallel: it averages, wants one backward pass a step, and forms its
buckets anew after the first step, so that a continued run would add in another order. A sum in buckets of a fixed
layout crosses the network once a step, for all networks together.
"""

import hashlib
import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _take_tensors

from esl_dist.early import line_end
from esl_dist.errors import UserError
from esl_dist.ranks.heartbeat import PROGRESS

BUCKET_BYTES = 32 * 2**20
"""Of one type and at most so large, though of one gradient at least: what crosses the network at once."""

LONGEST_TEXT = 200
"""Bytes of a text that ranks tell each other."""


def note_progress() -> None:
    """Tell the other ranks, which may be waiting, that this one gets on."""
    PROGRESS.worked()


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


def sum_over_ranks(tensor: Tensor, what: str = "a sum over ranks") -> Tensor:
    """Return the sum of `tensor` over all ranks, on every rank; the argument is not changed.

    `what` names the place in messages about a rank that does not come.
    """
    total = tensor.detach().clone()
    if world_size() > 1:
        on_device = total.cuda() if dist.get_backend() == "nccl" and not total.is_cuda else total
        _add_up(on_device, what)
        total = on_device.to(tensor.device)
    return total


def _add_up(tensor: Tensor, what: str) -> None:
    """Sum over all ranks in place, and return when it is done: only while it waits is a rank's time counted."""
    with PROGRESS.waiting(what):
        dist.all_reduce(tensor)
        if dist.get_backend() == "nccl":
            torch.cuda.current_stream().synchronize()


def broadcast_flags(flags: list[bool]) -> list[bool]:
    """Return rank 0's answers on every rank, where each might see another state of the files."""
    own = torch.tensor(flags, dtype=torch.int64)
    return [bool(flag) for flag in sum_over_ranks(own if is_main() else torch.zeros_like(own)).tolist()]


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        with PROGRESS.waiting("the end of a part of the job"):
            dist.barrier()


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


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the parameters' gradients over all ranks, in place; parameters without gradient are passed over."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _take_tensors(gradients, BUCKET_BYTES):  # type: ignore[no-untyped-call]
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        _add_up(flat, "the sum of gradients")
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
