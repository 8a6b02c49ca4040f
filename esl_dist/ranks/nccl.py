"""NCCL: what it is told before it begins, what its errors mean, and how a process leaves it after an error.

Its collectives are kernels on the GPU. Where another rank is gone they turn without end, the host hears nothing, and
whatever waits for the device waits with them: also what torch does at the end of a process. So the host watches the
other ranks by itself (`heartbeat`, `neighbour`), and after an error the process ends without waiting for kernels.
"""

import os
import re
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType, Store

from esl_dist.config import A_YEAR
from esl_dist.endings import within
from esl_dist.environment import Launch, started_by_torchrun
from esl_dist.errors import UserError, memory_words
from esl_dist.gpu_errors import defect_words, mistake_words

TIMEOUT = timedelta(minutes=A_YEAR)
"""Left to `heartbeat`: NCCL's own counts the time in which a job is suspended."""

ABORT_SECONDS = 3.0
"""In which communicators are told to end; kernels that do not hear it end with the process."""

VARIABLES = {
    # Else torch's watchdog ends the process by SIGABRT, before it can say why and for whom.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # Else the same for an error of CUDA, which the program is about to raise itself.
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    # Else the process ends by SIGABRT 8 minutes after the watchdog has ended; time that it was suspended counts there.
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
"""Of the environment, by which torch leaves errors to the program; what is set already stays. (PyTorch's page
"ProcessGroupNCCL Environment Variables", `ProcessGroupNCCL.hpp`.)"""
OLDER_NAMES = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "NCCL_ASYNC_ERROR_HANDLING"}
TORCHRUNS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
"""What torchrun sets for its processes where nobody said anything (`local_elastic_agent.py`)."""

DUPLICATE = re.compile(r"Duplicate GPU detected.*")

_is_begun = False


def begin(store: Store, launched: Launch, device: torch.device) -> None:
    """Make NCCL the way in which ranks exchange tensors."""
    global _is_begun
    _set_variables()
    _is_begun = True
    dist.init_process_group(
        "nccl",
        timeout=TIMEOUT,
        store=store,
        rank=launched.rank,
        world_size=launched.world_size,
        device_id=device,
    )


def _set_variables() -> None:
    by_launcher = TORCHRUNS if started_by_torchrun() else {}
    for name, value in VARIABLES.items():
        said = os.environ.get(name, os.environ.get(OLDER_NAMES.get(name, name)))
        if said in (None, by_launcher.get(name)):
            os.environ[name] = value


def is_begun() -> bool:
    """Return whether this process may have kernels of NCCL on its GPU."""
    return _is_begun


def abort() -> None:
    """Tell kernels that wait for other ranks to end; the process will not wait for them (`PROGRAM.leaves_at_once`)."""

    def tell() -> None:
        # What is damaged already, or gone, cannot be told anything.
        with suppress(Exception):
            dist.distributed_c10d._abort_process_group()

    within(ABORT_SECONDS, tell)


def failure() -> str | None:
    """Return what NCCL has noticed by itself that the program has not heard of; None where there is nothing."""
    for group in list(dist.distributed_c10d._world.pg_map) if _is_begun else []:
        # It asks what torch calls private, and a rank that cannot ask is watched all the same; gloo's cannot say.
        with suppress(Exception):
            error = group._get_backend(torch.device("cuda")).get_error()
            # That a rank takes long is for `heartbeat` to say.
            if error not in (ErrorType.SUCCESS, ErrorType.TIMEOUT):
                return f"NCCL reports {error.name} (NCCL_DEBUG=WARN says more)"
    return None


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error says that tensors cannot be exchanged, of whichever backend."""
    if (memory_words(error) or mistake_words(error) or defect_words(error)) is not None:
        return False
    # Gloo's errors have no type of their own, but name its source files or what has become of a pair of ranks.
    by_gloo = isinstance(error, RuntimeError) and any(word in str(error) for word in ("/gloo/", "pair closure"))
    return isinstance(error, dist.DistError) or by_gloo


def reason(error: BaseException) -> str:
    """Return the line of an error's text that says why; NCCL's is behind pages of C++, under "Last error:"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    explanation = next((line for line in lines if re.match(r"nccl[A-Z]\w+: ", line)), None)
    if explanation is None:
        return lines[0] if lines else type(error).__name__
    last = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else []
    return f"{explanation.partition(':')[0]}: {last[0]}" if last else explanation


def explained(error: BaseException) -> BaseException:
    """Return an error, or what one of NCCL says of the call: a UserError, where ranks have one GPU."""
    if not isinstance(error, dist.DistBackendError) or (said := DUPLICATE.search(str(error))) is None:
        return error
    return UserError(
        f"ranks share one GPU, which NCCL does not allow ({said[0].strip()}); start at most as many processes as there "
        "are GPUs"
    )
