"""What `accelerate launch` was asked for on its command line and in its file: nothing of it is passed over.

Of many options the launcher hands nothing on to the processes that it starts, or only in one of its ways to start them:
`--zero_stage 2` without `--use_deepspeed` leaves no trace in the environment, nor does `--dynamo_backend inductor` with
it. So a process that it started looks at the launcher's own words, and at the file that they name. What is neither
followed here nor the launcher's own business is refused by name, and so is an option of a later version that nobody
here knows. (`accelerate/commands/launch.py` and `accelerate/utils/launch.py`, version 1.15.)
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from esl_dist.config_files import read_yaml
from esl_dist.environment import NO, flag, launch, started_by_torchrun
from esl_dist.errors import UserError

LAUNCHERS = ("accelerate-launch", "accelerate.commands.launch")
COMMANDS = ("accelerate", "accelerate.commands.accelerate_cli")
"""Words of a command line that are the launcher before the word `launch`."""
NOTHING = (*NO, "none", "null", "", "[]", "{}")
FOLLOWED = frozenset(
    {
        *("mixed_precision", "multi_gpu", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
        *("compute_environment", "use_deepspeed", "deepspeed_multinode_launcher"),
    }
)
LAUNCHERS_OWN = frozenset(
    {
        *("config_file", "quiet", "module", "no_python", "tee", "log_dir", "role", "monitor_interval"),
        *("rdzv_backend", "rdzv_conf", "same_network", "mpirun_hostfile"),
    }
)
"""How it starts processes, with nothing left for them to do."""
ASKS_FOR_NOTHING = {
    "distributed_type": ("no", "multi_cpu", "multi_gpu", "deepspeed"),
    "dynamo_mode": ("default",),
    "gradient_accumulation_steps": ("1", "auto"),
    "gradient_clipping": ("auto", "0", "0.0"),
    "main_training_function": ("main",),
    "fsdp_version": ("1",),
}
"""Values that every program here fulfils, beside those of `NOTHING`."""


def refuse_what_is_not_followed(options: Mapping[str, str]) -> None:
    """Refuse what neither the launcher has done nor a program here will do.

    Args:
        options: of `accelerate launch`, by name.

    Raises:
        UserError: naming the first of them.
    """
    for name, value in options.items():
        nothing = (*NOTHING, *ASKS_FOR_NOTHING.get(name, ()))
        if name in FOLLOWED | LAUNCHERS_OWN or value.lower() in nothing:
            continue
        problem = _IN_PART[name](value) if name in _IN_PART else "is not supported; leave it out"
        if problem:
            raise UserError(f"accelerate launch: {name} {value} {problem}")


def _only_with_deepspeed(value: str) -> str:
    return "" if flag("ACCELERATE_USE_DEEPSPEED") else "is for DeepSpeed, which was not asked for; add --use_deepspeed"


def _only_on_several_machines(value: str) -> str:
    several = launch().world_size > launch().local_world_size
    return "" if several and flag("ACCELERATE_USE_DEEPSPEED") else "is for DeepSpeed on several machines; leave it out"


def _as_many_processes(value: str) -> str:
    # Where it starts one in place of several, `launchers` has the line to type.
    started = launch().world_size
    followed = started == 1 or value == str(started)
    return "" if followed else f"is not followed: it started {started}; give a multiple of num_machines"


def _restarts(value: str) -> str:
    return "" if started_by_torchrun() else "is for several processes; leave it out, and start again by hand"


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
    "num_processes": _as_many_processes,
    "max_restarts": _restarts,
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
    """Return the options of the `accelerate launch` that started this process, of its file too; none without it."""
    words = _launchers_words()
    if words is None:
        return {}
    given = dict(_given(words))
    return {**_in_file(given), **given}


def _launchers_words() -> list[str] | None:
    """Return the words between `launch` and the program; None where no such launcher started this process."""
    if not any(name.startswith("ACCELERATE_") for name in os.environ):
        return None
    try:
        commands = [process.cmdline() for process in psutil.Process().parents()]
    except psutil.Error:
        return None
    return next((words for words in map(_options_of, commands) if words is not None), None)


def _options_of(command: Sequence[str]) -> list[str] | None:
    names = [Path(word).name for word in command[:4]]
    for place, name in enumerate(names):
        if name in LAUNCHERS or (name == "launch" and names[max(place - 1, 0)] in COMMANDS):
            # Behind its options stand the program and the words that the program was given.
            end = len(command) - len(sys.argv)
            return list(command[place + 1 : end]) if list(command[end + 1 :]) == sys.argv[1:] else None
    return None


def _given(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name.replace("-", "_"), value if equals else "true" if following.startswith("-") else following


def _in_file(given: Mapping[str, str]) -> dict[str, str]:
    """Return the options of a file that `accelerate config` writes, its own one where none is named."""
    file = Path(given["config_file"]) if "config_file" in given else _default_file()
    if not file.is_file() or ("config_file" not in given and "cpu" in given):
        return {}
    return dict(_flat(read_yaml(file)))


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
