"""What launchers ask for and this program does not do is refused, not passed over."""

import os

import pytest

from esl_dist.errors import UserError
from esl_dist.ranks.launchers import asked_precision, asked_zero_stage, refuse_missing_ranks

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in os.environ if name.startswith(("ACCELERATE_", "SLURM_"))]
    for name in [*names, "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"]:
        monkeypatch.delenv(name, raising=False)


def asked(monkeypatch: pytest.MonkeyPatch, **environment: str) -> int | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return asked_zero_stage()


def test_without_deepspeed_there_is_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch) is None
    assert asked(monkeypatch, ACCELERATE_USE_DEEPSPEED="false", ACCELERATE_DEEPSPEED_ZERO_STAGE="3") is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_GRADIENT_CLIPPING": "none"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto", "ACCELERATE_GRADIENT_CLIPPING": "auto"},
        {"ACCELERATE_GRADIENT_CLIPPING": "0.0", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"},
    ],
)
def test_options_that_ask_for_nothing_are_accepted(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> None:
    assert asked(monkeypatch, **DEEPSPEED, **options) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero_stage 3 is not supported: expected 1 or 2"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device cpu .*; leave it out$"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device nvme .*; leave it out$"),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "gradient_accumulation_steps 4 .*, or give accumulate",
        ),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "gradient_clipping 1.0 .*; leave it out: no method here clips"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "x"}, "ACCELERATE_DEEPSPEED_ZERO_STAGE=x is impossible: .* from 0 to 3"),
        ({"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init_flag true .*: it is for stage 3"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "a.json"}, "deepspeed_config_file is not supported"),
    ],
)
def test_what_deepspeed_is_asked_for_and_does_not_get_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        asked(monkeypatch, **{**DEEPSPEED, **options})


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        (
            "MIXED_PRECISION",
            "junk",
            "MIXED_PRECISION=junk is impossible: expected one of no, tf32, bf16, fp16",
        ),
        ("MIXED_PRECISION", "", "ACCELERATE_MIXED_PRECISION= is impossible"),
        (
            "MIXED_PRECISION",
            "FP8",
            "MIXED_PRECISION=FP8 is impossible: expected one of no, tf32, bf16, fp16",
        ),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps 4 .*, or give accumulate to the training"),
        ("GRADIENT_CLIPPING", "1.0", "gradient_clipping 1.0 is not supported"),
        ("DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend INDUCTOR is not supported; .* give compile=true"),
        ("USE_PARALLELISM_CONFIG", "true", "parallelism_config true is not supported"),
        ("USE_CPU", "perhaps", "ACCELERATE_USE_CPU=perhaps is impossible: expected true or false"),
        ("USE_DEEPSPEED", "perhaps", "ACCELERATE_USE_DEEPSPEED=perhaps is impossible"),
        ("TORCH_DEVICE", "potato", "ACCELERATE_TORCH_DEVICE=potato is impossible"),
        ("TORCH_DEVICE", "", "ACCELERATE_TORCH_DEVICE= is impossible"),
        ("TORCH_DEVICE", "meta", "ACCELERATE_TORCH_DEVICE=meta is impossible: expected cpu, cuda"),
        ("TORCH_DEVICE", "mps", "ACCELERATE_TORCH_DEVICE=mps is impossible: expected cpu, cuda"),
        ("TORCH_DEVICE", "cuda:99", "ACCELERATE_TORCH_DEVICE=cuda:99 is impossible: PyTorch sees [0-9]+ GPUs"),
    ],
)
def test_without_deepspeed_nothing_is_passed_over_either(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        asked(monkeypatch, **{f"ACCELERATE_{variable}": text})


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_what_accelerates_launcher_says_where_it_is_asked_for_nothing_is_accepted(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    variables = {"USE_CPU": "False", "DYNAMO_BACKEND": "NO", "DYNAMO_MODE": "default", "MIXED_PRECISION": precision}
    assert asked(monkeypatch, **{f"ACCELERATE_{name}": text for name, text in variables.items()}) is None


def test_gpus_that_are_asked_for_and_not_there_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    several = {"WORLD_SIZE": "2", "RANK": "0", "ACCELERATE_DYNAMO_MODE": "default"}
    with pytest.raises(UserError, match="--multi_gpu was asked for GPUs, and PyTorch sees none"):
        asked(monkeypatch, **several)
    assert asked(monkeypatch, **several, ACCELERATE_USE_CPU="False") is None


@pytest.mark.parametrize("text", ["0", "abc", "-1"])
def test_threads_that_cannot_be_are_refused_where_accelerate_reads_them(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with pytest.raises(UserError, match=f"OMP_NUM_THREADS={text} is impossible"):
        asked(monkeypatch, WORLD_SIZE="2", RANK="0", OMP_NUM_THREADS=text)


@pytest.mark.parametrize("way", ["fsdp", "megatron_lm"])
def test_other_ways_to_divide_a_network_are_refused(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with pytest.raises(UserError, match=f"use_{way} true is not supported; leave it out, or use DeepSpeed"):
        asked(monkeypatch, **{f"ACCELERATE_USE_{way.upper()}": "true"})


@pytest.mark.parametrize(
    ("precision", "words", "more"),
    [
        ("no", ["name=a run"], ""),
        ("bf16", ["name=a run"], " precision=bf16"),
        ("bf16", ["name=a run", "precision=bf16"], " precision=bf16"),
    ],
)
def test_one_process_in_place_of_several_is_refused_with_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch, precision: str, words: list[str], more: str
) -> None:
    monkeypatch.setattr("sys.argv", ["launch/train.py", *words])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    refuse_missing_ranks({})
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(
        UserError, match=r"on CPU .*; for one, give --num_processes 1 and unset MASTER_PORT; "
    ) as refused:
        refuse_missing_ranks({})
    assert str(refused.value).endswith(f"type: torchrun --nproc_per_node N launch/train.py 'name=a run'{more}")
    monkeypatch.setattr("sys.argv", ["/bin/esl-dist", "train", *words])
    with pytest.raises(UserError, match=rf"type: torchrun --nproc_per_node N -m esl_dist train 'name=a run'{more}$"):
        refuse_missing_ranks({})
    refuse_missing_ranks({"num_processes": "1"})
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_missing_ranks({})


@pytest.mark.parametrize("option", ["num_processes", "num_machines"])
def test_several_that_were_asked_for_are_missed_whatever_another_launcher_set(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Such as Kubeflow's operator, for a job of one replica."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    refuse_missing_ranks({option: "1"})
    with pytest.raises(UserError, match="accelerate launch started one process where several were asked for"):
        refuse_missing_ranks({option: "2"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuse_missing_ranks({option: "2"})


@pytest.mark.parametrize("uses_cpu", ["True", "False"])
def test_one_process_that_was_asked_for_is_not_refused_for_a_port_alone(
    monkeypatch: pytest.MonkeyPatch, uses_cpu: str
) -> None:
    """Accelerate's launcher sets it together with an address."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", uses_cpu)
    monkeypatch.setenv("MASTER_PORT", "29500")
    refuse_missing_ranks({})


def test_one_process_on_a_machine_with_gpus_is_not_said_to_be_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's launcher then sets the flag, too."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match=r"^accelerate launch started one process where several were "):
        refuse_missing_ranks({})
    monkeypatch.delenv("MASTER_PORT")
    refuse_missing_ranks({})


@pytest.mark.parametrize(
    ("launched", "setting", "precision"),
    [
        (None, None, "no"),
        (None, "bf16", "bf16"),
        ("no", "fp16", "fp16"),
        ("bf16", None, "bf16"),
        ("BF16", "bf16", "bf16"),
        ("no", "no", "no"),
    ],
)
def test_precision_is_that_of_the_setting_or_else_the_launchers(
    monkeypatch: pytest.MonkeyPatch, launched: str | None, setting: str | None, precision: str
) -> None:
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert asked_precision(setting) == precision


@pytest.mark.parametrize(
    ("launched", "setting", "message"),
    [
        ("junk", None, "MIXED_PRECISION=junk is impossible: expected one of no, tf32, bf16, fp16"),
        ("", None, "ACCELERATE_MIXED_PRECISION=.* is impossible"),
        ("bf16", "fp16", "precision=fp16 contradicts the launcher's mixed precision bf16; leave out one"),
        ("bf16", "no", "precision=no contradicts the launcher's mixed precision bf16"),
    ],
)
def test_a_precision_that_nobody_knows_or_another_than_the_launchers_is_refused(
    monkeypatch: pytest.MonkeyPatch, launched: str, setting: str | None, message: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(UserError, match=message):
        asked_precision(setting)


def test_a_gpu_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"^ACCELERATE_TORCH_DEVICE=cuda is impossible: PyTorch sees 0 GPUs"):
        asked(monkeypatch, ACCELERATE_TORCH_DEVICE="cuda")
    assert asked(monkeypatch, ACCELERATE_TORCH_DEVICE="cpu") is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert asked(monkeypatch, ACCELERATE_TORCH_DEVICE="cuda:1") is None
    with pytest.raises(UserError, match=r"^ACCELERATE_TORCH_DEVICE=cuda:2 is impossible: PyTorch sees 2 GPUs"):
        asked(monkeypatch, ACCELERATE_TORCH_DEVICE="cuda:2")
