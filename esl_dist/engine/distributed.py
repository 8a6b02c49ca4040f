"""Ranks: start them, sum over them, agree with them.

Processes, devices and mixed precision come from Accelerate; every program works as well under `accelerate launch`,
`torchrun` and plain `python`. Gradients are summed here and not by DistributedDataParallel: it averages, wants one
backward pass a step, and forms its buckets anew after the first step, so that a continued run would add in another
order. A sum in buckets of a fixed layout crosses the network once a step, for all networks together.
"""

import hashlib
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import register_rendezvous_handler

from esl_dist.engine.launching import (
    asked_precision,
    asked_zero_stage,
    refuse_unlaunched_ranks,
    start_missing_processes,
)
from esl_dist.engine.meeting import Meeting, meet
from esl_dist.engine.presence import Presence
from esl_dist.environment import MOST_RANKS, flag, whole_number
from esl_dist.errors import LostRankError, UserError

BACKEND_FACTOR = 10
"""How much longer than `Presence` the backend waits, for it cannot see whether another rank gets on with its work."""

BUCKET_BYTES = 32 * 2**20

LONGEST_TEXT = 200
"""Bytes of a text that ranks tell each other."""


@dataclass(frozen=True)
class Ranks:
    """What the launcher gave: device, precision and, if it was asked for DeepSpeed, the ZeRO stage."""

    accelerator: Accelerator
    zero_stage: int | None


_presence: Presence | None = None
"""As global as the process group that torch.distributed keeps."""


@contextmanager
def joined_ranks(timeout_minutes: float, precision: str | None = None) -> Iterator[Ranks]:
    """Join the other ranks as the launcher's environment says, and part from them at the end of the block.

    What ends the block on one rank is told to the others.

    Args:
        timeout_minutes: how long a rank waits for the others.
        precision: of forward passes: no, bf16 or fp16; None: what the launcher was asked for.

    Raises:
        UserError: a precision that the device does not have or the launcher contradicts, or options of DeepSpeed that
            are not supported.
        LostRankError: a rank ended, or did not come where this one waited for it; the message names it.
    """
    global _presence
    zero_stage, precision = asked_zero_stage(), asked_precision(precision)
    start_missing_processes()
    refuse_unlaunched_ranks()
    meeting = meet(timeout_minutes)
    if meeting is not None:
        _presence = Presence(meeting.connect("presence"), meeting.rank, meeting.world_size, 60 * timeout_minutes)
    try:
        accelerator = _accelerator(meeting, timeout_minutes, zero_stage, precision)
        agreed = f"{accelerator.mixed_precision} {accelerator.device.type} {zero_stage}"
        refuse_disagreement(agreed, "precision, kind of device or ZeRO stage")
        yield Ranks(accelerator, zero_stage)
    except BaseException as error:
        if _presence is None:
            raise
        # A launcher sends SIGTERM when it sees another rank die; there are seconds left to say which, and why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_broken_connection(error):
            _presence.end_with(error)
            raise
        reason = str(error).splitlines()[0]
        cause = _presence.missing() or f"the ranks cannot exchange tensors, though all of them answer: {reason}"
        _presence.end_with(cause)
        raise LostRankError(cause) from error
    finally:
        if _presence is not None:
            _presence.stop()
            _presence = None
        if dist.is_initialized():
            # Gloo's threads abort a process that ends without this.
            dist.destroy_process_group()


def _is_broken_connection(error: BaseException) -> bool:
    # Gloo's errors have no type of their own, but name its source files.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _accelerator(
    meeting: Meeting | None, timeout_minutes: float, zero_stage: int | None, precision: str
) -> Accelerator:
    # Accelerate's own DeepSpeed would take over the process group, does without CPUs, and is not used.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    cpu = zero_stage is not None and not torch.cuda.is_available()
    group = InitProcessGroupKwargs(timeout=BACKEND_FACTOR * timedelta(minutes=timeout_minutes))
    if meeting is not None:
        if torch.cuda.is_available() and not flag("ACCELERATE_USE_CPU"):
            _refuse_shared_gpus(meeting)
        group.init_method = f"{meeting.room}://"
        register_rendezvous_handler(meeting.room, lambda *_, **__: iter([_group(meeting)]))  # type: ignore[no-untyped-call]
    if meeting is None and "WORLD_SIZE" not in os.environ:
        # A local rank of 0 alone is that of the only process, and Accelerate would wait for others.
        os.environ.pop("LOCAL_RANK", None)
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[group])
    except ValueError as error:
        raise UserError(f"cannot start: {error}") from error
    if world_size() == 1 and meeting is not None:
        raise UserError("several ranks were started without LOCAL_RANK; start them with torchrun or accelerate launch")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed precision fp16 needs a GPU; on CPU choose --mixed_precision no or bf16, or precision=…")
    return accelerator


def _refuse_shared_gpus(meeting: Meeting) -> None:
    """Make sure that each rank has a GPU of its own: Accelerate counts round, and NCCL names none.

    Raises:
        UserError: naming the ranks that would share one.
    """
    if (local_rank := whole_number("LOCAL_RANK", 0, MOST_RANKS)) is None:
        return
    torch.cuda.set_device(index := local_rank % torch.cuda.device_count())
    store = meeting.connect("devices")
    store.set(str(meeting.rank), f"{socket.gethostname()} {torch.cuda.get_device_properties(index).uuid}")
    devices = [store.get(str(rank)) for rank in range(meeting.world_size)]
    sharing = [rank for rank, device in enumerate(devices) if device == devices[meeting.rank]]
    if len(sharing) > 1:
        raise UserError(
            f"ranks {sharing} would share one GPU: this machine shows them {torch.cuda.device_count()}; start as many "
            "processes as there are GPUs"
        )


def _group(meeting: Meeting) -> tuple[Store, int, int]:
    return meeting.connect("group"), meeting.rank, meeting.world_size


def compute_the_same_on_any_number_of_ranks(device: torch.device) -> None:
    """Make inference independent of the number of ranks by a single bit.

    On CPU a convolution adds in another order on another number of threads; so every rank computes on one, and more
    ranks make it faster.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)


def note_work() -> None:
    """Tell the other ranks, which may be waiting, that this one gets on."""
    if _presence is not None:
        _presence.worked()


def _waiting(place: str) -> AbstractContextManager[None]:
    return nullcontext() if _presence is None else _presence.waiting(place)


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this is rank 0, the one that writes and prints."""
    return rank() == 0


def say(text: str) -> None:
    """Print a line, on rank 0 only."""
    if is_main():
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning to standard error, on rank 0 only."""
    if is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)


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
    with _waiting(what):
        dist.all_reduce(tensor)
        if dist.get_backend() == "nccl":
            torch.cuda.current_stream().synchronize()


def from_main(flags: list[bool]) -> list[bool]:
    """Return rank 0's answers on every rank, where each might see another state of the files."""
    own = torch.tensor(flags, dtype=torch.int64)
    return [bool(flag) for flag in sum_over_ranks(own if is_main() else torch.zeros_like(own)).tolist()]


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        with _waiting("the end of a part of the job"):
            dist.barrier()


def refuse_disagreement(text: str, what: str) -> None:
    """Make sure that every rank was given the same.

    Raises:
        UserError: on every rank, naming the ranks whose `text` is not rank 0's.
    """
    own = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.int64)
    table = torch.zeros(world_size(), len(own), dtype=torch.int64)
    table[rank()] = own
    table = sum_over_ranks(table)
    others = [number for number in range(world_size()) if not torch.equal(table[number], table[0])]
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
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        _add_up(flat, "the sum of gradients")
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    """Cut gradients into runs of one type and at most `BUCKET_BYTES`, though of one gradient at least."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        added = gradient.numel() * gradient.element_size()
        if bucket and (size + added > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += added
    if bucket:
        yield bucket
