"""Which GPU a rank takes: one of its own, of those that its machine shows it; and ranks that are all on GPUs, or none.

Accelerate counts round where there are more ranks than GPUs, and NCCL then fails at the first sum without naming them.
"""

import os
import socket
from pathlib import Path

import torch
from torch._C._distributed_c10d import Store

from esl_dist.environment import LOCAL_RANK, MOST_RANKS, Launch, first_number, flag
from esl_dist.errors import UserError
from esl_dist.ranks.launchers import DEVICE

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Of the machine's kernel, another after every start of it."""


def are_used(store: Store, launched: Launch) -> bool:
    """Return whether the ranks are on GPUs.

    Raises:
        UserError: only some would be, or all on one.
    """
    named = os.environ.get(DEVICE, "")
    if named.startswith("cuda:"):
        raise UserError(f"{DEVICE}={named} would put all ranks on one GPU; unset it: each rank takes its own")
    uses = torch.cuda.is_available() and named != "cpu" and not flag("ACCELERATE_USE_CPU")
    store.set(f"kind/{launched.rank}", str(uses))
    kinds = [store.get(f"kind/{rank}") for rank in range(launched.world_size)]
    without = [rank for rank, kind in enumerate(kinds) if kind != str(True).encode()]
    if 0 < len(without) < launched.world_size:
        raise UserError(
            f"ranks {without} have no GPU, or were told to use none, and the others have one; give every rank a GPU, "
            "or set ACCELERATE_USE_CPU=true for all"
        )
    return uses


def number_locally(store: Store, launched: Launch) -> None:
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


def choose_gpu(store: Store, launched: Launch) -> torch.device:
    """Take a GPU of this rank's own.

    Raises:
        UserError: on each of the ranks that would share one.
    """
    local_rank = first_number(LOCAL_RANK, 0, MOST_RANKS) or 0
    # A launcher that shows each rank its own GPU alone (srun --gpus-per-task=1) numbers the ranks all the same.
    index = local_rank % torch.cuda.device_count()
    os.environ["LOCAL_RANK"] = str(index)
    torch.cuda.set_device(index)
    # By itself: containers of one machine have host names of their own, and may be shown the same GPU.
    store.set(f"gpu/{launched.rank}", str(torch.cuda.get_device_properties(index).uuid))
    gpus = [store.get(f"gpu/{rank}") for rank in range(launched.world_size)]
    shared = [[rank for rank, gpu in enumerate(gpus) if gpu == one] for one in dict.fromkeys(gpus)]
    if too_many := [ranks for ranks in shared if len(ranks) > 1]:
        raise UserError(
            f"ranks would share a GPU: {', '.join(map(str, too_many))}; start at most as many processes on a machine "
            f"as it shows GPUs, here {torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)
