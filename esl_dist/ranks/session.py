"""A session of ranks: join the others, get a device and a precision, part from them with a reason.

Processes, devices and mixed precision come from Accelerate; every program works as well under `accelerate launch`,
`torchrun`, `srun` and plain `python`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch._C._distributed_c10d import Store
from torch.amp.grad_scaler import GradScaler

from esl_dist.endings import PROGRAM, cause, note_end_soon
from esl_dist.environment import launch
from esl_dist.errors import LostRankError, UserError
from esl_dist.ranks import gpus, nccl
from esl_dist.ranks.collectives import make_groups, require_same_on_ranks
from esl_dist.ranks.heartbeat import BACKEND_FACTOR, PROGRESS, THE_START, Heartbeat
from esl_dist.ranks.launchers import DEVICE, asked_of_launcher
from esl_dist.ranks.neighbour import Neighbour
from esl_dist.ranks.network import choose_interface
from esl_dist.ranks.precision import convolutions, missing
from esl_dist.ranks.rendezvous import meet
from esl_dist.ranks.stuck_launcher import watch_launcher
from esl_dist.stop_signals import keep_end, owns_process


@dataclass(frozen=True)
class Ranks:
    """What the launcher gave.

    Attributes:
        device: of this rank.
        precision: of forward passes: no, tf32, bf16 or fp16.
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
        precision: of forward passes: no, tf32, bf16 or fp16; None: what the launcher was asked for.

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
        with PROGRESS.waiting(THE_START):
            accelerator = _accelerator(store, timeout_minutes, zero_stage, precision)
        device = accelerator.device
        require_same_on_ranks(f"{precision} {device.type} {zero_stage}", "precision, kind of device or ZeRO stage")
        with convolutions(precision), _watched_neighbour():
            yield Ranks(device, precision, accelerator.autocast, accelerator.scaler, zero_stage)
        # To part from NCCL takes all ranks of a machine at once, and one may work on; gloo aborts a process that ends
        # as Python does while it still listens to the next rank.
        PROGRAM.leaves_at_once = keep_end() and dist.is_initialized()
    except BaseException as error:
        if heartbeat is None:
            raise
        # A launcher sends SIGTERM when it sees another rank die; there are seconds left to say which, and why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told = _tell_ranks(nccl.explained(error), heartbeat)
        if told is error:
            raise
        raise told from error
    finally:
        if heartbeat is not None:
            heartbeat.stop()
        PROGRESS.is_on_gpu = False
        if dist.is_initialized() and not PROGRAM.leaves_at_once:
            # For a process that goes on, such as a notebook's.
            dist.destroy_process_group()


@contextmanager
def _watched_neighbour() -> Iterator[None]:
    """Hear during the block whether the next rank lives, where collectives do not tell."""
    # Who goes on after its ranks have parted, such as a notebook, would have the connection go on as well.
    if not dist.is_initialized() or not (nccl.is_begun() or owns_process()):
        yield
        return
    with PROGRESS.waiting(THE_START):
        # A rank that a launcher started alone has none after it, and torch refuses to send to itself.
        neighbour = Neighbour() if dist.get_world_size() > 1 else None
    PROGRESS.is_on_gpu, PROGRESS.alarms = nccl.is_begun(), [nccl.failure]
    if neighbour is not None:
        PROGRESS.alarms.insert(0, neighbour.failure)
    try:
        yield
        if neighbour is not None:
            neighbour.part()
    finally:
        PROGRESS.alarms = []


def _tell_ranks(error: BaseException, heartbeat: Heartbeat) -> BaseException:
    """Tell the other ranks how this one ends, and return what it ends with: for a broken connection, who is lost."""
    words: BaseException | str = error
    if nccl.is_broken_connection(error):
        words = heartbeat.missing() or heartbeat.unexplained(nccl.reason(error))
        error = heartbeat.lost(words)
    note_end_soon(cause(error))
    heartbeat.end_with(words)
    # What hangs may hang at the end of the process as well.
    PROGRAM.leaves_at_once = nccl.is_begun() or owns_process()
    if nccl.is_begun():
        nccl.abort()
    return error


def _accelerator(store: Store | None, timeout_minutes: float, zero_stage: int | None, precision: str) -> Accelerator:
    # Accelerate's own DeepSpeed would take over the process group, does without CPUs, and is not used.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    if not torch.cuda.is_available():
        # Else it takes other kinds of device by itself, such as a laptop's MPS.
        os.environ[DEVICE] = "cpu"
    cpu = zero_stage is not None and not torch.cuda.is_available()
    if store is not None:
        _begin_backend(store, timeout_minutes)
    elif "WORLD_SIZE" not in os.environ:
        # A local rank of 0 alone is that of the only process, and Accelerate would wait for others.
        os.environ.pop("LOCAL_RANK", None)
    try:
        # It knows no tf32.
        accelerator = Accelerator(cpu=cpu, mixed_precision="no" if precision == "tf32" else precision)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"cannot start: {error}") from error
    if accelerator.device.index is not None:
        # Accelerate leaves a GPU that is named by ACCELERATE_TORCH_DEVICE to each tensor, and streams on the first one.
        torch.cuda.set_device(accelerator.device)
    if (problem := missing(precision, accelerator.device)) is not None:
        raise UserError(f"precision {precision} {problem}, as precision=… or by the launcher's --mixed_precision")
    return accelerator


def _begin_backend(store: Store, timeout_minutes: float) -> None:
    """Let ranks exchange tensors: over NCCL on GPUs, else over gloo."""
    launched = launch()
    gpus.number_locally(store, launched)
    # Gloo would take a loopback, NCCL does not; but what is not on a GPU goes over gloo there, too.
    choose_interface(store, launched.rank, launched.world_size)
    if gpus.are_used(store, launched):
        nccl.begin(store, launched, gpus.choose_gpu(store, launched))
        make_groups(nccl.TIMEOUT)
        return
    timeout = BACKEND_FACTOR * timedelta(minutes=timeout_minutes)
    dist.init_process_group("gloo", timeout=timeout, store=store, rank=launched.rank, world_size=launched.world_size)
    make_groups(timeout)
