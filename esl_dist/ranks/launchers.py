"""What launchers were asked for and leave to the program: nothing of it is passed over.

Without mpirun, Accelerate's launcher for CPUs starts one process, however many it was asked for, and says nothing (its
issue 2741). One that trains alone where several were asked for is refused.
"""

import os
import re
import shlex
from collections.abc import Mapping

from esl_dist.called import for_a_launcher
from esl_dist.config import PRECISIONS
from esl_dist.environment import choice, flag, launch, started_by_torchrun, whole_number
from esl_dist.errors import UserError
from esl_dist.files import as_given
from esl_dist.ranks.accelerate_options import (
    NOT_SUPPORTED,
    NOTHING,
    asked_options,
    gpus,
    refuse_what_is_not_followed,
)
from esl_dist.ranks.meeting_place import meeting_place

ZERO_STAGES = (1, 2)
MOST_THREADS = 2**16

DEVICE = "ACCELERATE_TORCH_DEVICE"

FOLLOWED = {
    *("MIXED_PRECISION", "USE_CPU", "CPU_AFFINITY", "TORCH_DEVICE", "USE_DEEPSPEED", "DEEPSPEED_CONFIG_FILE"),
    *("DEEPSPEED_ZERO_STAGE", "CONFIG_DS_FIELDS", "LOG_LEVEL", "ENABLE_RICH", "DISABLE_RICH", "DEBUG_RDV_FILE"),
}
"""Variables `ACCELERATE_…` that are read here, or change nothing but what the launcher says."""
OPTION_OF = {
    "DEBUG_MODE": "debug",
    "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "offload_optimizer_device",
    "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "offload_param_device",
    "DEEPSPEED_ZERO3_INIT": "zero3_init_flag",
    "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "zero3_save_16bit_model",
}
"""Options that are handed on under another name than their own."""


def asked_of_launcher(precision: str | None) -> tuple[int | None, str]:
    """Return the ZeRO stage and the precision that a program is to take, as `asked_zero_stage` and `asked_precision`.

    Raises:
        UserError: also where processes are missing that the launcher was asked for, or have no place to meet.
    """
    zero_stage, precision = asked_zero_stage(), asked_precision(precision)
    options = asked_options()
    refuse_missing_ranks(options)
    refuse_what_is_not_followed(options)
    if (world_size := launch().world_size) > 1:
        meeting_place(world_size)
    return zero_stage, precision


def _refuse_bad_launch() -> None:
    world_size = launch().world_size
    _refuse_handed_on()
    choice("ACCELERATE_MIXED_PRECISION", PRECISIONS)
    flag("ACCELERATE_USE_CPU")
    if flag("ACCELERATE_CPU_AFFINITY") and not gpus():
        raise UserError("enable_cpu_affinity true is not supported without GPUs; leave it out")
    _refuse_device(DEVICE)
    if world_size > 1:
        whole_number("OMP_NUM_THREADS", 1, MOST_THREADS)
    # Accelerate's launcher for CPUs says in a variable that it is that.
    is_multi_gpu = "ACCELERATE_DYNAMO_MODE" in os.environ and "ACCELERATE_USE_CPU" not in os.environ
    if is_multi_gpu and not flag("ACCELERATE_USE_DEEPSPEED") and not gpus():
        raise UserError(
            "accelerate launch --multi_gpu was asked for GPUs, and PyTorch sees none; start on a machine with GPUs, or "
            "with torchrun"
        )


def _refuse_handed_on() -> None:
    for variable, text in os.environ.items():
        name = variable.removeprefix("ACCELERATE_")
        if name == variable or name in FOLLOWED:
            continue
        option = OPTION_OF.get(name, name.lower())
        if option in NOT_SUPPORTED:
            refuse_what_is_not_followed({option: text})
        elif text.lower() not in NOTHING:
            raise UserError(f"{variable}={as_given(text)} is not followed here; unset it")


def _refuse_device(variable: str) -> None:
    name = os.environ.get(variable, "cpu")
    if (found := re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)) is None:
        raise UserError(
            f"{variable}={name} is impossible: expected cpu, cuda or such as cuda:0; correct it, or unset it"
        )
    if name != "cpu" and int(found[1] or 0) >= (found_gpus := gpus()):
        raise UserError(f"{variable}={name} is impossible: PyTorch sees {found_gpus} GPUs; correct it, or unset it")


def refuse_missing_ranks(options: Mapping[str, str]) -> None:
    """Make sure that all processes that a launcher was asked for are there, and know of each other.

    Args:
        options: of `accelerate launch`, by name, as far as they are seen.

    Raises:
        UserError: they do not: each would train alone, into the same folder.
    """
    if launch().world_size > 1 or started_by_torchrun():
        return
    asked = {options.get(name, "1") for name in ("num_processes", "num_machines")}
    # Where its words are not seen: Accelerate's launcher for CPUs sets where several processes that it was asked for
    # meet, and not how many. Kubeflow's operator sets this for a single one too, and then says so in WORLD_SIZE.
    meets = {"MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"} <= os.environ.keys()
    if not asked <= {"0", "1"} or (meets and "WORLD_SIZE" not in os.environ and "num_processes" not in options):
        precision = f"precision={asked_precision(None)}"
        own = for_a_launcher()
        words = own if precision in (*own, "precision=no") else [*own, precision]
        # It also starts the single process of a machine with GPUs, and then says False.
        where = " on CPU" if flag("ACCELERATE_USE_CPU") else ""
        raise UserError(
            f"accelerate launch started one process{where} where several were asked for, or MASTER_ADDR and "
            "MASTER_PORT were set before; for one, give --num_processes 1 and unset MASTER_PORT; for several, with N "
            "in place of their number (and --nnodes on several machines), type: "
            f"torchrun --nproc_per_node N {shlex.join(words)}"
        )


def asked_zero_stage() -> int | None:
    """Return the ZeRO stage that `accelerate launch` was asked for; None without DeepSpeed.

    Raises:
        UserError: a variable of the launcher that cannot be, or an option or a stage that is not followed here.
    """
    _refuse_bad_launch()
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
