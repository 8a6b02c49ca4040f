"""What `accelerate launch` was asked for and leaves to the program: processes on CPU, DeepSpeed and precision.

Without mpirun, Accelerate's launcher for CPUs starts one process whatever N is, and says nothing (its issue 2741). A
run on one process where several were asked for is a silent mistake, so that process starts the N ranks with torchrun.
"""

import os
import signal
import sys

import psutil
from accelerate.utils.environment import get_cpu_distributed_information
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from esl_dist.errors import UserError

ZERO_STAGES = (1, 2)

DEEPSPEED_OPTIONS = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", ("none",), ""),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", ("none",), ""),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps",
        ("1", "auto"),
        ", or give accumulate to the training",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", ("none", "auto", "0", "0.0"), ": no method here clips"),
}
"""By the variable in which the launcher hands it on: the option's name, what asks for nothing, what to do instead."""

PRECISIONS = ("no", "bf16", "fp16")

OTHER_STRATEGIES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def start_missing_processes() -> None:
    """Become the launcher of N ranks where Accelerate's launcher started one of N; else return at once.

    Raises:
        UserError: N cannot be found out, or several machines were asked for.
    """
    # The launcher sets MASTER_PORT only for several processes, and WORLD_SIZE only where it starts them all.
    alone = "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ
    if not alone or get_cpu_distributed_information().world_size > 1:
        return
    processes, machines = (_asked(psutil.Process().parent(), f"num_{what}") for what in ("processes", "machines"))
    if processes is None or machines not in (None, 1):
        raise UserError(
            "accelerate launch --cpu started one process where several were asked for; start them with "
            "torchrun --nproc_per_node N (and --nnodes on several machines) instead"
        )
    # A signal to stop may go to this process, too: it is for the ranks, and this one waits for their end.
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        torchrun(["--standalone", "--nproc_per_node", str(processes), *sys.argv])
    except ChildFailedError as error:
        sys.exit(next(iter(error.failures.values())).exitcode)
    except SignalException as error:
        # The ranks got the signal too, and have said so.
        sys.exit(128 + error.sigval.value)
    sys.exit(0)


def _asked(launcher: psutil.Process | None, option: str) -> int | None:
    """Return the number behind an option in the launcher's command line; None if there is none."""
    words = [] if launcher is None else [part for word in launcher.cmdline() for part in word.split("=", 1)]
    for spelling in (f"--{option}", f"--{option}".replace("_", "-")):
        if spelling in words[:-1]:
            number = words[words.index(spelling) + 1]
            return int(number) if number.isdigit() else None
    return None


def refuse_unlaunched_ranks() -> None:
    """Make sure that processes which srun started together know of each other.

    Raises:
        UserError: they do not: each would train alone, into the same folder.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if int(tasks) > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"srun started {tasks} processes that do not know of each other; let it start one torchrun on each machine"
        )


def asked_zero_stage() -> int | None:
    """Return the ZeRO stage that `accelerate launch` was asked for; None without DeepSpeed.

    Raises:
        UserError: a stage or an option that training several networks does not bear, or another way to divide them.
    """
    for variable, strategy in OTHER_STRATEGIES.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(f"{strategy} is not supported; start without it, or with DeepSpeed's ZeRO stage 1 or 2")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        raise UserError(
            "deepspeed_config_file is not supported: its batch and optimiser settings would contradict the recipe's; "
            "give zero_stage instead, as launch/accelerate/deepspeed_zero2.yaml does"
        )
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0"))
    if stage not in ZERO_STAGES:
        raise UserError(
            f"zero_stage {stage} is not supported: expected 1 or 2. Stage 3 divides the weights of a network, which a "
            "frozen pass through the discriminators and the export of weights need whole"
        )
    for variable, (option, possible, instead) in DEEPSPEED_OPTIONS.items():
        given = os.environ.get(variable, possible[0])
        if given not in possible:
            raise UserError(f"{option} {given} is not supported; leave it out{instead}")
    return stage


def asked_precision(precision: str | None) -> str:
    """Return the precision of forward passes: that of the setting `precision`, else the launcher's.

    Raises:
        UserError: the launcher was asked for one that is not known, or for another than the setting.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in PRECISIONS:
        raise UserError(
            f"mixed precision {launched!r} (ACCELERATE_MIXED_PRECISION) is not supported: expected one of "
            f"{', '.join(PRECISIONS)}"
        )
    # The launcher says no also where it was asked for nothing.
    if precision is not None and launched not in ("no", precision):
        raise UserError(
            f"precision={precision} contradicts the launcher's mixed precision {launched}; leave out one of the two"
        )
    return launched if precision is None else precision
