"""Ranks: start them, sum over them, agree with them.

Processes, devices and mixed precision come from Accelerate; every program works as well under `accelerate launch`,
`torchrun` and plain `python`. Gradients are summed here and not by DistributedDataParallel: it averages, wants one
backward pass a step, and forms its buckets anew after the first step, so that a continued run would add in another
order. A sum in buckets of a fixed layout crosses the network once a step, for all networks together.
"""

import atexit
import hashlib
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn

from esl_dist.engine.launching import start_missing_processes
from esl_dist.errors import UserError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others."""

BUCKET_BYTES = 32 * 2**20


def start() -> Accelerator:
    """Join the other ranks as the launcher's environment says; device and precision are the accelerator's.

    Raises:
        UserError: a precision that the device does not have.
    """
    start_missing_processes()
    try:
        accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])
    except ValueError as error:
        raise UserError(f"cannot start: {error}") from error
    if dist.is_initialized():
        # Gloo's threads abort a process that ends without this.
        atexit.register(dist.destroy_process_group)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed precision fp16 needs a GPU; on CPU choose --mixed_precision no or bf16")
    return accelerator


def start_inference() -> Accelerator:
    """Join the other ranks as `start` does, to compute what must not depend on their number by a single bit.

    On CPU a convolution adds in another order on another number of threads; so every rank computes on one, and more
    ranks make it faster.
    """
    accelerator = start()
    if accelerator.device.type == "cpu":
        torch.set_num_threads(1)
    return accelerator


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this is rank 0, the one that writes and prints."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, on every rank; the argument is not changed."""
    total = tensor.detach().clone()
    if world_size() > 1:
        on_device = total.cuda() if dist.get_backend() == "nccl" and not total.is_cuda else total
        dist.all_reduce(on_device)
        total = on_device.to(tensor.device)
    return total


def from_main(flags: list[bool]) -> list[bool]:
    """Return rank 0's answers on every rank, where each might see another state of the files."""
    own = torch.tensor(flags, dtype=torch.int64)
    return [bool(flag) for flag in sum_over_ranks(own if is_main() else torch.zeros_like(own)).tolist()]


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
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


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the parameters' gradients over all ranks, in place; parameters without gradient are passed over."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
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
