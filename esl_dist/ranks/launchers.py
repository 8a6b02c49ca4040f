"""What `accelerate launch` was asked for and leaves to the program: processes on CPU, DeepSpeed and precision.

Without mpirun, Accelerate's launcher for CPUs starts one process whatever N is, and says nothing (its issue 2741). A
run on one process where several were asked for is a silent mistake, so that process starts the N ranks with torchrun.
"""

import os
import signal
import sys
from collections.abc import Mapping

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from esl_dist.config import PRECISIONS
from esl_dist.environment import MOST_RANKS, choice, flag, launch, whole_number
from esl_dist.errors import UserError
from esl_dist.ranks.rendezvous import allow_files_of_store

ZERO_STAGES = (1, 2)
MOST_THREADS = 2**16

OPTIONS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps",
        ("1", "auto"),
        ", or give accumulate to the training",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", ("none", "auto", "0", "0.0"), ": no method here clips"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", ("no",), ": networks are not compiled"),
}
"""By the variable in which the launcher hands it on: the option's name, what asks for nothing, what to do instead."""

DEEPSPEED_OPTIONS = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", ("none",), ""),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", ("none",), ""),
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": ("zero3_init_flag", ("false", "none"), ": it is for stage 3"),
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": ("zero3_save_16bit_model", ("false", "none"), ": it is for stage 3"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": ("deepspeed_moe_layer_cls_names", ("none", ""), ""),
}

OTHER_STRATEGIES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "Accelerate's launcher for SageMaker",
}


def refuse_bad_launch() -> None:
    """Make sure that all that the launcher asks for is done: nothing is passed over.

    Raises:
        UserError: a variable of the launcher that cannot be, or an option that is not followed here.
    """
    world_size = launch().world_size
    for variable, strategy in OTHER_STRATEGIES.items():
        if flag(variable):
            raise UserError(f"{strategy} is not supported; start without it, or with DeepSpeed's ZeRO stage 1 or 2")
    choice("ACCELERATE_MIXED_PRECISION", PRECISIONS)
    _refuse_options(OPTIONS)
    for variable in ("ACCELERATE_USE_CPU", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE"):
        flag(variable)
    _refuse_device("ACCELERATE_TORCH_DEVICE")
    if world_size > 1:
        whole_number("OMP_NUM_THREADS", 1, MOST_THREADS)
    if world_size > 1 and _was_asked_for_gpus() and not torch.cuda.is_available():
        raise UserError(
            "accelerate launch --multi_gpu was asked for GPUs, and PyTorch sees none; start on a machine with GPUs, or "
            "with accelerate launch --cpu"
        )


def _refuse_device(variable: str) -> None:
    name, gpus = os.environ.get(variable, "cpu"), torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(
            f"{variable}={name} is impossible: expected cpu, cuda or such as cuda:0; correct it, or unset it"
        )
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UserError(f"{variable}={name} is impossible: PyTorch sees {gpus} GPUs; correct it, or unset it")


def _was_asked_for_gpus() -> bool:
    """Say whether this is a rank of `accelerate launch --multi_gpu`; its launcher for CPUs says so in a variable."""
    is_accelerate = "ACCELERATE_DYNAMO_MODE" in os.environ
    return is_accelerate and "ACCELERATE_USE_CPU" not in os.environ and not flag("ACCELERATE_USE_DEEPSPEED")


def _refuse_options(options: Mapping[str, tuple[str, tuple[str, ...], str]]) -> None:
    for variable, (option, possible, instead) in options.items():
        given = os.environ.get(variable, possible[0])
        if given.lower() not in possible:
            raise UserError(f"{option} {given} is not supported; leave it out{instead}")


def start_missing_processes() -> None:
    """Become the launcher of N ranks where Accelerate's launcher started one of N; else return at once.

    Raises:
        UserError: as `refuse_bad_launch`, before any process is started; N cannot be found out, or several machines
            were asked for.
    """
    refuse_bad_launch()
    # The launcher sets MASTER_PORT only for several processes, and WORLD_SIZE only where it starts them all.
    alone = "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ
    if not alone or launch().world_size > 1:
        return
    processes, machines = (_asked(psutil.Process().parent(), f"num_{what}") for what in ("processes", "machines"))
    if processes is None or machines not in (None, 1):
        raise UserError(
            "accelerate launch --cpu started one process where several were asked for; start them with "
            "torchrun --nproc_per_node N (and --nnodes on several machines) instead"
        )
    allow_files_of_store(processes)
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
    tasks = whole_number("SLURM_STEP_NUM_TASKS", 1, MOST_RANKS) or 1
    if tasks > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"srun started {tasks} processes that do not know of each other; let it start one torchrun on each machine"
        )


def asked_zero_stage() -> int | None:
    """Return the ZeRO stage that `accelerate launch` was asked for; None without DeepSpeed.

    Raises:
        UserError: as `refuse_bad_launch`; a stage or an option that training several networks does not bear.
    """
    refuse_bad_launch()
    if not flag("ACCELERATE_USE_DEEPSPEED"):
        return None
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        raise UserError(
            "deepspeed_config_file is not supported: its batch and optimiser settings would contradict the recipe's; "
            "give zero_stage instead, as launch/accelerate/deepspeed_zero2.yaml does"
        )
    stage = whole_number("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0, 3) or 0
    if stage not in ZERO_STAGES:
        raise UserError(
            f"zero_stage {stage} is not supported: expected 1 or 2. Stage 3 divides the weights of a network, which a "
            "frozen pass through the discriminators and the export of weights need whole"
        )
    _refuse_options(DEEPSPEED_OPTIONS)
    return stage


def asked_precision(precision: str | None) -> str:
    """Return the precision of forward passes: that of the setting `precision`, else the launcher's.

    Raises:
        UserError: the launcher was asked for one that is not known, or for another than the setting.
    """
    launched = choice("ACCELERATE_MIXED_PRECISION", PRECISIONS)
    # The launcher says no also where it was asked for nothing.
    if precision is not None and launched not in ("no", precision):
        raise UserError(
            f"precision={precision} contradicts the launcher's mixed precision {launched}; leave out one of the two"
        )
    return launched if precision is None else precision
