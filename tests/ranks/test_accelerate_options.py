"""Every option of `accelerate launch`, on its command line or in its file, is followed, its own business or refused."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser

from esl_dist.environment import LOCAL_RANK, RANK, WORLD_SIZE
from esl_dist.errors import UserError
from esl_dist.ranks.accelerate_options import asked_options, refuse_what_is_not_followed

ARGV = ["launch/train.py", "--config", "a.yaml", "name=r"]
WITHOUT_A_MEANING = {"help", "training_script", "training_script_args"}
FOLLOWED = {"mixed_precision", "multi_gpu", "use_deepspeed", "main_process_ip", "main_process_port"}
LAUNCHERS_OWN = {"config_file", "quiet", "module", "no_python", "same_network"}
FOLLOWED_BY_ONE_PROCESS = {"num_processes", "mpirun_hostfile"}
REFUSED_BEYOND_ONE_WAY = {
    *("cpu", "num_processes", "max_restarts", "num_cpu_threads_per_process", "gpu_ids", "enable_cpu_affinity"),
    *("zero_stage", "deepspeed_config_file", "deepspeed_hostfile", "deepspeed_exclusion_filter"),
    *("deepspeed_inclusion_filter", "deepspeed_multinode_launcher", "num_machines", "machine_rank", "tee", "log_dir"),
    *("role", "monitor_interval", "rdzv_backend", "rdzv_conf", "mpirun_hostfile"),
}
"""Followed by one way to start processes, and refused where it is another."""
REFUSED = {
    *("tpu", "tpu_use_cluster", "tpu_use_sudo", "vm", "env", "main_training_function", "downcast_bf16"),
    *("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"),
    *("dynamo_use_regional_compilation", "use_fsdp", "use_parallelism_config", "use_megatron_lm"),
    *("offload_optimizer_device", "offload_param_device", "offload_optimizer_nvme_path", "offload_param_nvme_path"),
    *("gradient_accumulation_steps", "gradient_clipping", "zero3_init_flag", "zero3_save_16bit_model"),
    *("deepspeed_moe_layer_cls_names", "debug", "aws_access_key_id", "aws_secret_access_key"),
}
REFUSED_FAMILIES = ("fsdp_", "megatron_lm_", "fp8_", "parallelism_config_")
OPTIONS = sorted({action.dest for action in launch_command_parser()._actions} - WITHOUT_A_MEANING)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accelerates = [name for name in os.environ if name.startswith("ACCELERATE_")]
    for name in (*RANK, *WORLD_SIZE, *LOCAL_RANK, *accelerates, "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ARGV)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def started_by(monkeypatch: pytest.MonkeyPatch, *command: str) -> dict[str, str]:
    """Return the options that a process reads from the command line of the launcher, among others that hide theirs."""

    def hidden() -> list[str]:
        raise psutil.AccessDenied

    process = None
    for words in (hidden, lambda: list(command), hidden, lambda: ["bash"], lambda: [*sys.orig_argv]):
        process = SimpleNamespace(cmdline=words, parent=lambda above=process: above)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    return asked_options()


def is_refused(options: Mapping[str, str]) -> bool:
    try:
        refuse_what_is_not_followed(options)
    except UserError as error:
        # By name.
        return any(name in str(error) for name in options)
    return False


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_this_version_is_followed_or_refused(option: str) -> None:
    """One of a later version is refused too; then say here, and in the module, what becomes of it."""
    own = FOLLOWED | LAUNCHERS_OWN
    known = own | REFUSED | REFUSED_BEYOND_ONE_WAY
    assert option in known or option.startswith(REFUSED_FAMILIES), "new"
    # One process that was started without DeepSpeed, with another number of threads, and sees no GPU.
    assert is_refused({option: "7"}) == (option not in own | FOLLOWED_BY_ONE_PROCESS)


@pytest.mark.parametrize("option", ["a_new_one", *sorted(REFUSED)])
def test_what_asks_for_nothing_is_let_through(option: str) -> None:
    assert not any(is_refused({option: nothing}) for nothing in ("no", "NO", "None", "false", "False", "[]"))


def test_what_the_launcher_takes_where_nothing_is_given_is_let_through_where_it_is_given() -> None:
    """Those of its flags that say no to something have a name of their own."""
    defaults = {action.dest: action.default for action in launch_command_parser()._actions if action.nargs != 0}
    given = {name: re.sub(r"[() ]", "", str(default)) for name, default in defaults.items() if name in OPTIONS}
    assert [name for name, value in given.items() if is_refused({name: value})] == []
    assert not is_refused({"no_tpu_cluster": "true", "mpirun_ccl": "1"})


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"ACCELERATE_USE_CPU": "True"}, {"cpu": "true"}),
        ({"ACCELERATE_USE_CPU": "True"}, {"use_cpu": "True", "gpu_ids": "all"}),
        ({"OMP_NUM_THREADS": "7"}, {"num_cpu_threads_per_process": "7"}),
        (
            {"TORCHELASTIC_RUN_ID": "none"},
            {
                "max_restarts": "3",
                "tee": "3",
                "log_dir": "logs",
                "role": "r",
                "rdzv_backend": "c10d",
                "rdzv_conf": "a=1",
            },
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            {"num_machines": "2", "machine_rank": "1"},
        ),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, {"num_processes": "4"}),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {"zero_stage": "2", "gradient_accumulation_steps": "auto"}),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            {"deepspeed_hostfile": "hosts"},
        ),
    ],
)
def test_what_one_way_to_start_follows_is_let_through_there(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not is_refused(options)


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({}, {"zero_stage": "2"}, "zero_stage 2 is for DeepSpeed, which was not asked for; add --use_deepspeed"),
        ({}, {"distributed_type": "FSDP"}, "distributed_type FSDP is not supported; leave it out"),
        ({}, {"use_cpu": "true"}, "use_cpu true is not followed by this way to start; start with torchrun"),
        ({}, {"gpu_ids": "0,1"}, "gpu_ids 0,1 is for GPUs, and PyTorch sees none; leave it out"),
        ({}, {"tee": "3"}, "tee 3 is for several processes; leave it out"),
        ({}, {"log_dir": "logs"}, "log_dir logs is for several processes; leave it out"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            {"machine_rank": "1"},
            "machine_rank 1 is for several machines, and all processes are on one; leave it out",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none"},
            {"mpirun_hostfile": "hosts"},
            "mpirun_hostfile hosts is not followed by this",
        ),
        ({"OMP_NUM_THREADS": "1"}, {"num_cpu_threads_per_process": "4"}, "set OMP_NUM_THREADS=4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"num_processes": "3"}, "it started 2; give a multiple of num_machines"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {"deepspeed_hostfile": "hosts"}, "DeepSpeed on several machines"),
    ],
)
def test_what_this_way_to_start_passes_over_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        refuse_what_is_not_followed(options)


@pytest.mark.parametrize(
    "launcher",
    [
        ("/bin/python3", "/bin/accelerate", "launch"),
        ("python", "-m", "accelerate.commands.launch"),
        ("python", "-m", "accelerate.commands.accelerate_cli", "launch"),
        ("/bin/python", "/bin/accelerate-launch"),
        ("python", "-X", "dev", "-W", "ignore", "-m", "accelerate.commands.launch"),
        ("nice", "-n", "1", "uv", "run", "accelerate", "launch"),
        ("python", "/lib/accelerate/commands/launch.py"),
        ("python", "/lib/accelerate/commands/accelerate_cli.py", "launch"),
        ("python", "-c", "import sys\nfrom accelerate.commands.launch import main; sys.exit(main())"),
    ],
)
def test_the_words_of_the_launcher_are_those_before_the_program(
    monkeypatch: pytest.MonkeyPatch, launcher: Iterable[str]
) -> None:
    words = ("--cpu", "--zero-stage", "2", "-m", "--dynamo_mode=max-autotune", "--quiet")
    asked = {"cpu": "true", "zero_stage": "2", "dynamo_mode": "max-autotune", "quiet": "true"}
    assert started_by(monkeypatch, *launcher, *words, *ARGV) == asked
    assert started_by(monkeypatch, *launcher, *words, "other.py", "name=s") == {}, "it started another program"
    assert started_by(monkeypatch, "torchrun", *words, *ARGV) == {}


def test_a_launcher_without_words_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_by(monkeypatch, "accelerate", "launch", *ARGV) == {}


@pytest.mark.parametrize("words", [["-t", "3"], ["-t3"], ["-qt", "3"], ["--tee=3"]])
def test_an_option_of_one_letter_is_seen(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert started_by(monkeypatch, "accelerate", "launch", *words, *ARGV) == {"tee": "3"}


def test_a_program_that_no_such_launcher_started_looks_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setattr(psutil, "Process", lambda: pytest.fail("looked"))
    assert asked_options() == {}


@pytest.mark.parametrize("is_default", [True, False])
def test_what_stands_in_the_file_is_asked_for_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_default: bool
) -> None:
    file = tmp_path / ("home/accelerate/default_config.yaml" if is_default else "a.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "distributed_type": "DEEPSPEED",
        "num_processes": 4,
        "deepspeed_config": {"zero_stage": 2},
        "fsdp_config": {"offload_params": True, "fsdp_version": 2},
        "fp8_config": {"backend": "TE"},
        "tpu_env": [],
    }
    file.write_text(yaml.safe_dump(content))
    named = () if is_default else ("--config_file", str(file))
    asked = started_by(monkeypatch, "accelerate", "launch", *named, "--num_processes", "2", *ARGV)
    asked.pop("config_file", None)
    assert asked == {
        "distributed_type": "DEEPSPEED",
        "num_processes": "2",
        "zero_stage": "2",
        "fsdp_offload_params": "True",
        "fsdp_version": "2",
        "fp8_backend": "TE",
        "tpu_env": "[]",
    }


def test_a_file_that_accelerate_writes_is_let_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = ClusterConfig(
        compute_environment="LOCAL_MACHINE",
        distributed_type="NO",
        mixed_precision="no",
        use_cpu=False,
        debug=False,
        num_processes=1,
        gpu_ids="all",
    )
    written.to_yaml_file(tmp_path / "written.yaml")
    command = ("accelerate", "launch", "--config_file", str(tmp_path / "written.yaml"), *ARGV)
    options = started_by(monkeypatch, *command)
    assert options["distributed_type"] == "NO"
    refuse_what_is_not_followed(options)


def file_options(monkeypatch: pytest.MonkeyPatch, file: Path, text: str, *words: str) -> dict[str, str]:
    """Return the options of a launcher whose file says a text, those of the file alone."""
    file.write_text(text)
    options = started_by(monkeypatch, "accelerate", "launch", "--config_file", str(file), *words, *ARGV)
    return {name: value for name, value in options.items() if name != "config_file" and f"--{name}" not in words}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{\n\t"num_processes": 1,\n\t"num_processes": 2\n}'),
        ("a.yaml", "num_processes: 1\nnum_processes: 2\n"),
    ],
)
def test_a_file_is_read_as_accelerate_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str
) -> None:
    assert file_options(monkeypatch, tmp_path / name, text) == {"num_processes": "2"}


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_a_file_that_cannot_be_read_is_named_as_accelerates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match=f"{name}, the file of accelerate launch, cannot be read: .*; correct it"):
        file_options(monkeypatch, tmp_path / name, "{")


@pytest.mark.parametrize(
    ("word", "rest"),
    [
        ("--multi_gpu", {"gpu_ids": "all"}),
        ("--use_deepspeed", {"gpu_ids": "all", "zero_stage": "2"}),
        ("--quiet", {"distributed_type": "FSDP", "fsdp_version": "2", "gpu_ids": "all", "zero_stage": "2"}),
    ],
)
def test_a_way_to_start_on_the_command_line_overrules_that_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, rest: dict[str, str]
) -> None:
    content = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}, "gpu_ids": "all"}
    text = yaml.safe_dump({**content, "deepspeed_config": {"zero_stage": 2}})
    assert file_options(monkeypatch, tmp_path / "a.yaml", text, word) == rest


@pytest.mark.parametrize(
    ("text", "words"),
    [("enable_cpu_affinity: true", ["--enable_cpu_affinity"]), ("rdzv_backend: c10d", ["--rdzv_backend", "c10d"])],
)
def test_what_the_launcher_does_not_take_from_a_file_is_refused_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: list[str]
) -> None:
    """Whatever GPUs there are."""
    with pytest.raises(UserError, match=f"is not taken from a file; leave it out there, or type {words[0]}"):
        file_options(monkeypatch, tmp_path / "a.yaml", text)
    file_options(monkeypatch, tmp_path / "a.yaml", text, *words)
    file_options(monkeypatch, tmp_path / "a.yaml", "enable_cpu_affinity: false\nrdzv_backend: static")
