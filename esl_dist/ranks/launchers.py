"""What launchers were asked for and leave to the program: nothing of it is passed over.

Without mpirun, Accelerate's launcher for CPUs starts one process, however many it was asked for, and says nothing (its
issue 2741). One that trains alone where several were asked for is refused.
"""

import os
import re
import shlex
import sys

from esl_dist.config import PRECISIONS
from esl_dist.environment import NO, choice, flag, launch, whole_number
from esl_dist.errors import UserError
from esl_dist.files import as_given
from esl_dist.ranks.accelerate_options import asked_options, gpus, refuse_what_is_not_followed
from esl_dist.ranks.meeting_place import meeting_place

ZERO_STAGES = (1, 2)
MOST_THREADS = 2**16

MORE_PASSES = ", or give accumulate to the training"
ZERO_INSTEAD = ", or use DeepSpeed's ZeRO stage 1 or 2"
NOT_COMPILED = ": networks are not compiled"
NOTHING = (*NO, "none", "")
NOT_FOLLOWED = {
    "GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", ("1", "auto"), MORE_PASSES),
    "GRADIENT_CLIPPING": ("gradient_clipping", ("none", "auto", "0", "0.0"), ": no method here clips"),
    "DYNAMO_BACKEND": ("dynamo_backend", NOTHING, NOT_COMPILED),
    "DYNAMO_MODE": ("dynamo_mode", ("default",), NOT_COMPILED),
    "DYNAMO_USE_FULLGRAPH": ("dynamo_use_fullgraph", NOTHING, NOT_COMPILED),
    "DYNAMO_USE_DYNAMIC": ("dynamo_use_dynamic", NOTHING, NOT_COMPILED),
    "DYNAMO_USE_REGIONAL_COMPILATION": ("dynamo_use_regional_compilation", NOTHING, NOT_COMPILED),
    "DEBUG_MODE": ("debug", NOTHING, ": it checks sums of Accelerate's own, of which there are none here"),
    "USE_FSDP": ("use_fsdp", NOTHING, ZERO_INSTEAD),
    "USE_MEGATRON_LM": ("use_megatron_lm", NOTHING, ZERO_INSTEAD),
    "USE_PARALLELISM_CONFIG": ("use_parallelism_config", NOTHING, ""),
    "USE_SAGEMAKER": ("Accelerate's launcher for SageMaker:", NOTHING, ", or use torchrun"),
    "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", NOTHING, ""),
    "DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", NOTHING, ""),
    "DEEPSPEED_ZERO3_INIT": ("zero3_init_flag", NOTHING, ": it is for stage 3"),
    "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": ("zero3_save_16bit_model", NOTHING, ": it is for stage 3"),
    "DEEPSPEED_MOE_LAYER_CLS_NAMES": ("deepspeed_moe_layer_cls_names", NOTHING, ""),
}
"""By the variable `ACCELERATE_…` that hands it on: the option's name, what asks for nothing, what to do instead."""
FOLLOWED = {
    *("MIXED_PRECISION", "USE_CPU", "CPU_AFFINITY", "TORCH_DEVICE", "USE_DEEPSPEED", "DEEPSPEED_CONFIG_FILE"),
    *("DEEPSPEED_ZERO_STAGE", "CONFIG_DS_FIELDS", "LOG_LEVEL", "ENABLE_RICH", "DISABLE_RICH", "DEBUG_RDV_FILE"),
}
"""Variables `ACCELERATE_…` that are read here, or change nothing but what the launcher says."""


def asked_of_launcher(precision: str | None) -> tuple[int | None, str]:
    """Return the ZeRO stage and the precision that a program is to take, as `asked_zero_stage` and `asked_precision`.

    Raises:
        UserError: also where processes are missing that the launcher was asked for, or have no place to meet.
    """
    zero_stage, precision = asked_zero_stage(), asked_precision(precision)
    refuse_missing_ranks()
    refuse_what_is_not_followed(asked_options())
    if (world_size := launch().world_size) > 1:
        meeting_place(world_size)
    return zero_stage, precision


def _refuse_bad_launch() -> None:
    world_size = launch().world_size
    for variable, (option, nothing, instead) in NOT_FOLLOWED.items():
        given = os.environ.get(f"ACCELERATE_{variable}", nothing[0])
        if given.lower() not in nothing:
            raise UserError(f"{option} {given} is not supported; leave it out{instead}")
    choice("ACCELERATE_MIXED_PRECISION", PRECISIONS)
    flag("ACCELERATE_USE_CPU")
    if flag("ACCELERATE_CPU_AFFINITY") and not gpus():
        raise UserError("enable_cpu_affinity true is not supported without GPUs; leave it out")
    for variable, text in os.environ.items():
        is_known = variable.removeprefix("ACCELERATE_") in FOLLOWED | NOT_FOLLOWED.keys()
        if variable.startswith("ACCELERATE_") and not is_known and text.lower() not in NOTHING:
            raise UserError(f"{variable}={as_given(text)} is not followed here; unset it")
    _refuse_device("ACCELERATE_TORCH_DEVICE")
    if world_size > 1:
        whole_number("OMP_NUM_THREADS", 1, MOST_THREADS)
    # Accelerate's launcher for CPUs says in a variable that it is that.
    is_multi_gpu = "ACCELERATE_DYNAMO_MODE" in os.environ and "ACCELERATE_USE_CPU" not in os.environ
    if is_multi_gpu and not flag("ACCELERATE_USE_DEEPSPEED") and not gpus():
        raise UserError(
            "accelerate launch --multi_gpu was asked for GPUs, and PyTorch sees none; start on a machine with GPUs, or "
            "with torchrun"
        )


def _refuse_device(variable: str) -> None:
    name = os.environ.get(variable, "cpu")
    if (found := re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)) is None:
        raise UserError(
            f"{variable}={name} is impossible: expected cpu, cuda or such as cuda:0; correct it, or unset it"
        )
    if name != "cpu" and int(found[1] or 0) >= (found_gpus := gpus()):
        raise UserError(f"{variable}={name} is impossible: PyTorch sees {found_gpus} GPUs; correct it, or unset it")


def refuse_missing_ranks() -> None:
    """Make sure that all processes that a launcher was asked for are there, and know of each other.

    Raises:
        UserError: they do not: each would train alone, into the same folder.
    """
    if "WORLD_SIZE" in os.environ:
        return
    # Accelerate's launcher for CPUs sets where several processes that were asked for meet, and says nowhere how many.
    if {"MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"} <= os.environ.keys() and launch().world_size == 1:
        precision = f"precision={asked_precision(None)}"
        words = sys.argv if precision in (*sys.argv, "precision=no") else [*sys.argv, precision]
        # It also starts the single process of a machine with GPUs, and then says False.
        where = " on CPU" if flag("ACCELERATE_USE_CPU") else ""
        raise UserError(
            f"accelerate launch started one process{where} where several were asked for, or MASTER_ADDR and "
            "MASTER_PORT were set before; for one, unset MASTER_PORT; for several, with N in place of their number "
            f"(and --nnodes on several machines), type: torchrun --nproc_per_node N {shlex.join(words)}"
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
