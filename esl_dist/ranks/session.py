"""A session of ranks: join the others, get a device and a precision, part from them with a reason.

Processes, devices and mixed precision come from Accelerate; every program works as well under `accelerate launch`,
`torchrun`, `srun` and plain `python`.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch._C._distributed_c10d import Store
from torch.amp.grad_scaler import GradScaler

from esl_dist.endings import cause, note_end_soon
from esl_dist.environment import LOCAL_RANK, MOST_RANKS, Launch, first_number, flag, launch
from esl_dist.errors import LostRankError, UserError
from esl_dist.ranks.collectives import require_same_on_ranks
from esl_dist.ranks.heartbeat import PROGRESS, Heartbeat
from esl_dist.ranks.launchers import asked_of_launcher
from esl_dist.ranks.network import choose_interface
from esl_dist.ranks.rendezvous import meet
from esl_dist.ranks.stuck_launcher import watch_launcher
from esl_dist.stop_signals import keep_end

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Of the machine's kernel, another after every start of it."""

BACKEND_FACTOR = 10
"""How much longer than `Heartbeat` the backend waits, for it cannot see whether another rank gets on with its work."""


@dataclass(frozen=True)
class Ranks:
    """What the launcher gave.

    Attributes:
        device: of this rank.
        precision: of forward passes: no, bf16 or fp16.
        autocast: returns the context of forward passes.
        scaler: of losses in fp16; None in other precisions.
        zero_stage: of DeepSpeed; None without it.
    """

    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager[None]]
    scaler: GradScaler | None
    zero_stage: int | None


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
    zero_stage, precision = asked_of_launcher(precision)
    launched, store, heartbeat = launch(), None, None
    try:
        stores = meet(timeout_minutes)
    except LostRankError:
        watch_launcher(launched.rank)
        raise
    if stores is not None:
        store, own_store = stores
        heartbeat = Heartbeat(own_store, launched.rank, launched.world_size, 60 * timeout_minutes)
    try:
        with PROGRESS.waiting("the start"):
            accelerator = _accelerator(store, timeout_minutes, zero_stage, precision)
        device, mixed = accelerator.device, accelerator.mixed_precision
        require_same_on_ranks(f"{mixed} {device.type} {zero_stage}", "precision, kind of device or ZeRO stage")
        yield Ranks(device, mixed, accelerator.autocast, accelerator.scaler, zero_stage)
        keep_end()
    except BaseException as error:
        if heartbeat is None:
            raise
        # A launcher sends SIGTERM when it sees another rank die; there are seconds left to say which, and why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_broken_connection(error):
            note_end_soon(cause(error))
            heartbeat.end_with(error)
            raise
        reason = str(error).splitlines()[0]
        words = heartbeat.missing() or (
            f"the ranks cannot exchange tensors, though all of them answer: {reason}{heartbeat.network_advice()}"
        )
        lost = heartbeat.lost(words)
        note_end_soon(cause(lost))
        heartbeat.end_with(words)
        raise lost from error
    finally:
        if heartbeat is not None:
            heartbeat.stop()
        if dist.is_initialized():
            # Gloo's threads abort a process that ends without this.
            dist.destroy_process_group()


def _is_broken_connection(error: BaseException) -> bool:
    # Gloo's errors have no type of their own, but name its source files.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _accelerator(store: Store | None, timeout_minutes: float, zero_stage: int | None, precision: str) -> Accelerator:
    # Accelerate's own DeepSpeed would take over the process group, does without CPUs, and is not used.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    cpu = zero_stage is not None and not torch.cuda.is_available()
    if store is not None:
        uses_gpus = torch.cuda.is_available() and not flag("ACCELERATE_USE_CPU")
        launched = launch()
        _number_locally(store, launched)
        if uses_gpus:
            _choose_gpu(store, launched)
        else:
            # NCCL takes no loopback by itself.
            choose_interface(store, launched.rank, launched.world_size)
        dist.init_process_group(
            "nccl" if uses_gpus else "gloo",
            timeout=BACKEND_FACTOR * timedelta(minutes=timeout_minutes),
            store=store,
            rank=launched.rank,
            world_size=launched.world_size,
        )
    elif "WORLD_SIZE" not in os.environ:
        # A local rank of 0 alone is that of the only process, and Accelerate would wait for others.
        os.environ.pop("LOCAL_RANK", None)
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    except ValueError as error:
        raise UserError(f"cannot start: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed precision fp16 needs a GPU; on CPU choose --mixed_precision no or bf16, or precision=…")
    return accelerator


def _number_locally(store: Store, launched: Launch) -> None:
    """Say which of its machine's ranks this one is, where the launcher does not (Kubeflow's PyTorchJob, PMI)."""
    # Containers of one machine have names of their own, and machines started from one image may share a name.
    store.set(f"machine/{launched.rank}", f"{socket.gethostname()} {BOOT.read_text() if BOOT.exists() else ''}")
    # Some launchers say -1 where they do not know it; one rank may know it, and another wait for what it said here.
    if (first_number(LOCAL_RANK, -1, MOST_RANKS) or 0) >= 0 and any(name in os.environ for name in LOCAL_RANK):
        return
    machines = [store.get(f"machine/{rank}") for rank in range(launched.world_size)]
    neighbours = [rank for rank, machine in enumerate(machines) if machine == machines[launched.rank]]
    os.environ["LOCAL_RANK"] = str(neighbours.index(launched.rank))
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(len(neighbours)))


def _choose_gpu(store: Store, launched: Launch) -> None:
    """Make sure that each rank has a GPU of its own: Accelerate counts round, and NCCL names none."""
    local_rank = first_number(LOCAL_RANK, 0, MOST_RANKS) or 0
    # A launcher that shows each rank its own GPU alone (srun --gpus-per-task=1) numbers the ranks all the same.
    index = local_rank % torch.cuda.device_count()
    os.environ["LOCAL_RANK"] = str(index)
    torch.cuda.set_device(index)
    store.set(f"gpu/{launched.rank}", f"{socket.gethostname()} {torch.cuda.get_device_properties(index).uuid}")
    gpus = [store.get(f"gpu/{rank}") for rank in range(launched.world_size)]
    sharing = [rank for rank, gpu in enumerate(gpus) if gpu == gpus[launched.rank]]
    if len(sharing) > 1:
        raise UserError(
            f"ranks {sharing} would share one GPU: this machine shows them {torch.cuda.device_count()}; start as many "
            "processes as there are GPUs"
        )
