"""What `accelerate launch` was asked for on its command line and in its file: nothing of it is passed over.

Of many options the launcher hands nothing on to the processes that it starts, or only in one of its ways to start them:
`--zero_stage 2` without `--use_deepspeed` leaves no trace in the environment, nor does `--dynamo_backend inductor` with
it. So a process that it started looks at the launcher's own words, and at the file that they name. What is neither
followed here nor the launcher's own business is refused by name, and so is an option of a later version that nobody
here knows. (`accelerate/commands/launch.py` and `accelerate/utils/launch.py`, version 1.15.)
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from esl_dist.environment import NO, flag, launch, started_by_torchrun
from esl_dist.errors import UserError

LAUNCHER = re.compile(r"(?s).*\baccelerate[./]commands[./]launch\b|(.*/)?accelerate-launch$")
COMMAND = re.compile(r"(?s).*\baccelerate[./]commands[./]accelerate_cli\b|(.*/)?accelerate$")
"""Words of a command line, also a path or a line of Python, that are the launcher before the word `launch`."""
NOTHING = (*NO, "none", "null", "", "[]", "{}")
FOLLOWED = frozenset(
    {
        *("mixed_precision", "multi_gpu", "main_process_ip", "main_process_port", "compute_environment"),
        *("use_deepspeed",),
    }
)
LAUNCHERS_OWN = frozenset({"config_file", "quiet", "module", "no_python", "same_network"})
"""How it starts processes, with nothing left for them to do."""
NOT_SUPPORTED = {
    "gradient_accumulation_steps": ", or give accumulate to the training",
    "gradient_clipping": ": no method here clips",
    **dict.fromkeys(
        (
            *("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph"),
            *("dynamo_use_dynamic", "dynamo_use_regional_compilation"),
        ),
        ", or give compile=true to the training",
    ),
    "debug": ": it checks sums of Accelerate's own, of which there are none here",
    **dict.fromkeys(("use_fsdp", "use_megatron_lm"), ", or use DeepSpeed's ZeRO stage 1 or 2"),
    "use_parallelism_config": "",
    "use_sagemaker": ", or use torchrun",
    **dict.fromkeys(("offload_optimizer_device", "offload_param_device", "deepspeed_moe_layer_cls_names"), ""),
    **dict.fromkeys(("zero3_init_flag", "zero3_save_16bit_model"), ": it is for stage 3"),
}
"""What to do instead of options that the launcher hands on in variables, too."""
ASKS_FOR_NOTHING = {
    "distributed_type": ("no", "multi_cpu", "multi_gpu", "deepspeed"),
    "num_machines": ("1",),
    "rdzv_backend": ("static",),
    "role": ("default",),
    "monitor_interval": ("0.1",),
    "dynamo_mode": ("default",),
    "gradient_accumulation_steps": ("1", "auto"),
    "gradient_clipping": ("auto", "0", "0.0"),
    "deepspeed_multinode_launcher": ("standard",),
    "main_training_function": ("main",),
    "no_tpu_cluster": ("true",),
    "mpirun_ccl": ("1",),
    "fsdp_version": ("1",),
    "fsdp_min_num_params": ("100000000",),
    "fsdp_sharding_strategy": ("full_shard",),
    **dict.fromkeys(("fsdp_reshard_after_forward", "fsdp_use_orig_params"), ("true",)),
    **dict.fromkeys(("fsdp_cpu_ram_efficient_loading", "fsdp_sync_module_states"), ("true",)),
    **dict.fromkeys(("megatron_lm_tp_degree", "megatron_lm_pp_degree"), ("1",)),
    "megatron_lm_gradient_clipping": ("1.0", "1"),
    "fp8_interval": ("1",),
    "fp8_format": ("hybrid",),
    "fp8_amax_history_len": ("1024",),
    "fp8_amax_compute_algo": ("most_recent",),
    "fp8_override_linear_precision": ("false,false,false",),
    "fp8_opt_level": ("o2",),
    **dict.fromkeys(("fp8_enable_fsdp_float8_all_gather", "fp8_pad_inner_dim"), ("true",)),
    **{f"parallelism_config_{part}_size": ("1",) for part in ("dp_replicate", "dp_shard", "tp", "cp", "sp")},
    "parallelism_config_cp_backend": ("torch",),
    "parallelism_config_cp_comm_strategy": ("allgather",),
    "parallelism_config_sp_backend": ("deepspeed",),
    "parallelism_config_sp_seq_length_is_variable": ("true",),
    "parallelism_config_sp_attn_implementation": ("sdpa",),
}
"""Beside `NOTHING`: values that every program here fulfils, and those that the launcher takes where none is given."""
OTHER_WAYS = ("distributed_type", "fsdp_config", "megatron_lm_config", "parallelism_config", "mpirun_config")
OVERRULED_BY = {"multi_gpu": (*OTHER_WAYS, "deepspeed_config"), "use_deepspeed": OTHER_WAYS}
"""By a word of the command line: what of a file the launcher then does without."""
NOT_TAKEN_FROM_A_FILE = ("rdzv_backend", "enable_cpu_affinity")
"""The launcher takes its own default before what a file says."""


def refuse_what_is_not_followed(options: Mapping[str, str]) -> None:
    """Refuse what neither the launcher has done nor a program here will do.

    Args:
        options: of `accelerate launch`, by name.

    Raises:
        UserError: naming the first of them.
    """
    for name, value in options.items():
        if name in FOLLOWED | LAUNCHERS_OWN or _asks_for_nothing(name, value):
            continue
        problem = f"is not supported; leave it out{NOT_SUPPORTED.get(name, '')}"
        if name in _IN_PART:
            problem = _IN_PART[name](value)
        if problem:
            raise UserError(f"accelerate launch: {name} {value} {problem}")


def _asks_for_nothing(name: str, value: str) -> bool:
    return value.lower() in (*NOTHING, *ASKS_FOR_NOTHING.get(name, ()))


def _only_with_deepspeed(value: str) -> str:
    return "" if flag("ACCELERATE_USE_DEEPSPEED") else "is for DeepSpeed, which was not asked for; add --use_deepspeed"


def _only_on_several_machines(value: str) -> str:
    several = _on_machines(value) == "" and flag("ACCELERATE_USE_DEEPSPEED")
    return "" if several else "is for DeepSpeed on several machines; leave it out"


def _on_machines(value: str) -> str:
    several = launch().world_size > launch().local_world_size
    return "" if several else "is for several machines, and all processes are on one; leave it out"


def _as_many_processes(value: str) -> str:
    # Where it starts one in place of several, `launchers` has the line to type.
    started = launch().world_size
    followed = started == 1 or value == str(started)
    return "" if followed else f"is not followed: it started {started}; give a multiple of num_machines"


def _restarts(value: str) -> str:
    return "" if started_by_torchrun() else "is for several processes; leave it out, and start again by hand"


def _with_torchrun(value: str) -> str:
    return "" if started_by_torchrun() else "is for several processes; leave it out"


def _with_mpirun(value: str) -> str:
    return _on_cpu(value) if started_by_torchrun() else ""


def _threads(value: str) -> str:
    followed = os.environ.get("OMP_NUM_THREADS") == value
    return "" if followed else f"is not followed: the launcher does not hand it on; set OMP_NUM_THREADS={value}"


def _on_cpu(value: str) -> str:
    return "" if flag("ACCELERATE_USE_CPU") else "is not followed by this way to start; start with torchrun"


def _on_gpus(value: str) -> str:
    return "" if value.lower() == "all" or gpus() else "is for GPUs, and PyTorch sees none; leave it out"


_IN_PART: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(("zero_stage", "deepspeed_config_file"), _only_with_deepspeed),
    **dict.fromkeys(
        ("deepspeed_hostfile", "deepspeed_exclusion_filter", "deepspeed_inclusion_filter"), _only_on_several_machines
    ),
    "deepspeed_multinode_launcher": _only_on_several_machines,
    "num_processes": _as_many_processes,
    **dict.fromkeys(("num_machines", "machine_rank"), _on_machines),
    "max_restarts": _restarts,
    **dict.fromkeys(("tee", "log_dir", "role", "monitor_interval", "rdzv_backend", "rdzv_conf"), _with_torchrun),
    "mpirun_hostfile": _with_mpirun,
    "num_cpu_threads_per_process": _threads,
    **dict.fromkeys(("cpu", "use_cpu"), _on_cpu),
    **dict.fromkeys(("gpu_ids", "enable_cpu_affinity"), _on_gpus),
}
"""Options that are followed in some ways to start, by name: what is wrong with a value, "" for nothing."""


def gpus() -> int:
    """Return how many GPUs PyTorch sees."""
    # Not before GPUs are asked for: torch takes seconds, and what else is wrong is known without it.
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def asked_options() -> dict[str, str]:
    """Return the options of the `accelerate launch` that started this process, of its file too; none without it.

    Raises:
        UserError: its file cannot be read any more, or says what the launcher takes from its command line alone.
    """
    words = _launchers_words()
    if words is None:
        return {}
    given = dict(_given(words))
    in_file = _in_file(given)
    for name in NOT_TAKEN_FROM_A_FILE:
        if name not in given and not _asks_for_nothing(name, value := in_file.get(name, "")):
            raise UserError(
                f"accelerate launch: {name} {value} is not taken from a file; leave it out there, or type --{name}"
            )
    return {**in_file, **given}


def _launchers_words() -> list[str] | None:
    """Return the words between `launch` and the program; None where no such launcher started this process."""
    if not any(name.startswith("ACCELERATE_") for name in os.environ):
        return None
    with suppress(psutil.Error):
        process = psutil.Process().parent()
        while process is not None:
            # One that hides its words, such as another user's shell, does not hide the launcher.
            with suppress(psutil.Error):
                if (words := _options_of(process.cmdline())) is not None:
                    return words
            process = process.parent()
    return None


def _options_of(command: Sequence[str]) -> list[str] | None:
    # Behind the launcher's options stand the program and the words that the program was given.
    end = len(command) - len(sys.argv)
    if end < 0 or list(command[end + 1 :]) != sys.argv[1:]:
        return None
    for place, (before, word) in enumerate(pairwise(["", *command[:end]])):
        if LAUNCHER.match(word) or (word == "launch" and COMMAND.match(before)):
            return list(command[place + 1 : end])
    return None


def _given(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, following in pairwise([*words, "-"]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name.replace("-", "_"), value if equals else "true" if following.startswith("-") else following
        elif short := re.fullmatch(r"-[mq]*t(.*)", word):
            yield "tee", short[1] or following


def _in_file(given: Mapping[str, str]) -> dict[str, str]:
    """Return the options of a file that `accelerate config` writes, its own one where none is named."""
    file = Path(given["config_file"]) if "config_file" in given else _default_file()
    if not file.is_file() or ("config_file" not in given and "cpu" in given):
        return {}
    overruled = {name for word, names in OVERRULED_BY.items() if word in given for name in names}
    return dict(_flat({name: value for name, value in _read(file).items() if name not in overruled}))


def _read(file: Path) -> dict[str, Any]:
    """Read a file as Accelerate does, whose file it is: not as strictly as those of the programs here."""
    try:
        text = file.read_text("utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}, the file of accelerate launch, cannot be read: {reason}; correct it") from error
    return content if isinstance(content, dict) else {}


def _default_file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    home = Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser()
    return home / "accelerate" / "default_config.yaml"


def _flat(content: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, str]]:
    """Yield options by name; in a group such as fsdp_config the name may lack what the group begins with."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, key.removesuffix("_config"))
        else:
            has_prefix = group not in ("fsdp", "fp8", "dynamo") or key.startswith(group)
            yield key if has_prefix else f"{group}_{key}", str(value)
