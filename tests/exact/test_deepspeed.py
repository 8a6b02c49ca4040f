"""DeepSpeed's ZeRO 1 and 2 follow the plain run, and their checkpoints are those of a plain run."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from esl_dist.command_line import EXIT_USER_ERROR
from esl_dist.runs.checkpoints import checkpoint_folder, checkpoint_folders, load_checkpoint
from tests.exact.trainings import (
    IN_FLOAT64,
    LAST_PLACE,
    TRAIN,
    assert_equal_to_rounding,
    entries,
    everything_learned,
    losses,
    newest_step,
    run_in,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, RankServer
from tests.programs import environment

pytestmark = [
    pytest.mark.exact,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

SHIPPED = PROJECT / "launch/accelerate/deepspeed_zero2.yaml"
STEPS, HALF = 4, 2
# Rates fall fast: each step has its own.
WORDS = (f"steps={STEPS}", "log_every=1", f"checkpoints.every={HALF}", f"optimizer.schedule_steps={STEPS + 1}")
# DeepSpeed has no setting for it: without half precision, its weights, sums and states are of this type.
ALL_IN_FLOAT64 = (str(PROJECT / CHANGED), "import torch; torch.float32 = torch.float64", str(PROJECT / IN_FLOAT64))


def launch(config: Path, town: Path, run: Path, *words: str) -> str:
    """Train as a user would, though in float64; returns what was printed."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    done = subprocess.run(
        [*launcher, *ALL_IN_FLOAT64, str(PROJECT / TRAIN), *training_words(town, run, *words)],
        capture_output=True,
        text=True,
        check=False,
        # Nothing is compiled.
        env={**environment(), "CXX": "false", "TORCH_EXTENSIONS_DIR": str(run.parent)},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed(folder: Path, **changes: Any) -> Path:
    """Write the shipped configuration with other values; those of `deepspeed_config` are added to it."""
    content = yaml.safe_load(SHIPPED.read_text())
    deepspeed = content["deepspeed_config"] | changes.pop("deepspeed_config", {})
    file = folder / "changed.yaml"
    file.write_text(yaml.safe_dump(content | changes | {"deepspeed_config": deepspeed}))
    return file


def asked_by(config: Path) -> dict[str, str]:
    """Return what Accelerate's launcher tells its processes in their environment, without starting them."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    arguments = launch_command_parser().parse_args(["--config_file", str(config), TRAIN])
    arguments, from_file, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(from_file.deepspeed_config)
    _, told = prepare_deepspeed_cmd_env(arguments)
    return {name: value for name, value in told.items() if os.environ.get(name) != value}


def train(
    server: RankServer,
    town: Path,
    run: Path,
    *words: str,
    stage: int | None = None,
    ranks: int = 2,
    precision: str = "no",
) -> str:
    """Train as Accelerate's launcher would have it, with or without DeepSpeed; returns what was printed.

    Without mixed precision in float64: DeepSpeed adds up the gradients of several passes in an order of its own.
    """
    experiments = run.parent.parent
    experiments.mkdir(exist_ok=True)
    asked = asked_by(changed(experiments, deepspeed_config={"zero_stage": stage})) if stage else {}
    environment = asked | {"ACCELERATE_MIXED_PRECISION": precision}
    program, *arguments = (*(ALL_IN_FLOAT64 if precision == "no" else ()), str(PROJECT / TRAIN))
    job = server.start(program, [*arguments, *training_words(town, run, *WORDS, *words)], ranks, environment)
    assert job.exit_codes() == [0] * ranks, job.output()
    assert f"precision {precision}" + (f", DeepSpeed ZeRO stage {stage}" if stage else ",") in job.output()
    return job.output()


@pytest.fixture(scope="module")
def server() -> Iterator[RankServer]:
    """Return one whose ranks need not import DeepSpeed, which takes longer than they train."""
    with RankServer("deepspeed") as started:
        yield started


@pytest.fixture(scope="module")
def plain(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_in(tmp_path_factory.mktemp("plain"))
    train(server, town, run)
    return run


@pytest.fixture(scope="module")
def divided(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_in(tmp_path_factory.mktemp("divided"))
    assert "2 processes on cpu, precision no, DeepSpeed ZeRO stage 2" in launch(SHIPPED, town, run, *WORDS)
    return run


def half_of(run: Path, folder: Path) -> Path:
    """Return a copy of a run without its last checkpoint: one that was stopped in the middle."""
    copy = run_in(folder, run.name)
    shutil.copytree(run, copy)
    shutil.rmtree(checkpoint_folders(copy)[-1])
    assert newest_step(copy) == HALF
    return copy


def assert_follows(run: Path, plain: Path) -> None:
    expected = losses(plain)
    found = losses(run)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name] == pytest.approx(curve, rel=LAST_PLACE, abs=0), name
    assert_equal_to_rounding(everything_learned(run), everything_learned(plain))


def test_stage_2_follows_the_plain_run(plain: Path, divided: Path) -> None:
    assert "loss/discriminator/main" in losses(plain)
    assert_follows(divided, plain)


@pytest.fixture(scope="module")
def accumulated(server: RankServer, town: Path, pseudo_labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_in(tmp_path_factory.mktemp("accumulated"))
    train(server, town, run, "accumulate=2", f"pseudo_labels={pseudo_labels}")
    return run


@pytest.mark.parametrize("stage", grid([1, 2], stay=[]))
def test_with_pseudo_labels_and_accumulated_passes_it_follows_the_plain_run(
    server: RankServer, town: Path, tmp_path: Path, pseudo_labels: Path, accumulated: Path, stage: int
) -> None:
    assert {"loss/discriminator/main", "loss/target_cross_entropy/main"} < losses(accumulated).keys()
    run = run_in(tmp_path)
    train(server, town, run, "accumulate=2", f"pseudo_labels={pseudo_labels}", stage=stage)
    assert_follows(run, accumulated)


def test_a_run_with_deepspeed_goes_on_without_it_on_one_process(
    server: RankServer, town: Path, tmp_path: Path, plain: Path, divided: Path
) -> None:
    run = half_of(divided, tmp_path)
    printed = train(server, town, run, ranks=1)
    assert f"1 process on cpu, precision no, from step {HALF} to {STEPS}" in printed
    assert_equal_to_rounding(everything_learned(run), everything_learned(plain))


@pytest.mark.parametrize("stage", grid([1, 2], stay=[2]))
def test_a_run_without_deepspeed_goes_on_with_it(
    server: RankServer, town: Path, tmp_path: Path, plain: Path, stage: int
) -> None:
    run = half_of(plain, tmp_path)
    printed = train(server, town, run, stage=stage)
    assert f"DeepSpeed ZeRO stage {stage}, from step {HALF} to {STEPS}" in printed
    assert_equal_to_rounding(everything_learned(run), everything_learned(plain))


@pytest.mark.grid
def test_adamw_whose_weights_do_not_all_decay_goes_on_with_it(server: RankServer, town: Path, tmp_path: Path) -> None:
    words = ("method.name=minent", "optimizer.kind=adamw", "optimizer.weight_decay=0.1")
    plain = run_in(tmp_path, "plain")
    train(server, town, plain, *words)
    run = half_of(plain, tmp_path / "half")
    train(server, town, run, *words, stage=2)
    learned = everything_learned(plain)
    assert any("/optimizers/segmentation/" in name and name.endswith("exp_avg_sq") for name in learned)
    assert_equal_to_rounding(everything_learned(run), learned)


@pytest.mark.grid
def test_a_run_of_one_network_whose_optimiser_has_no_states_goes_on_with_it_in_bf16(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    words = ("method.name=source_only", "network.batch_norm=shared", "optimizer.momentum=0", f"steps={HALF + 1}")
    plain = run_in(tmp_path, "plain")
    train(server, town, plain, *words, precision="bf16")
    run = half_of(plain, tmp_path / "half")
    printed = train(server, town, run, *words, stage=1, precision="bf16")
    assert f"DeepSpeed ZeRO stage 1, from step {HALF} to {HALF + 1}" in printed
    # One step from the same weights: its losses are the same to the bit, and so is the gradient of its one pass, which
    # two ranks add up. Only the update of a weight, w - rate * (gradient + decay * w), may round at other places.
    shown, expected = entries(run), entries(plain)
    for name in (name for name in expected if name.startswith("loss/")):
        assert shown[name] == {HALF + 1: expected[name][HALF + 1]}, name
    assert_equal_to_rounding(everything_learned(run), everything_learned(plain), 2 * LAST_PLACE)
    assert load_checkpoint(checkpoint_folder(run, HALF + 1)).training["optimizers"]["segmentation"]["state"] == {}


def test_its_checkpoints_hold_the_optimisers_states_of_a_plain_run(plain: Path, divided: Path) -> None:
    expected, found = everything_learned(plain), everything_learned(divided)
    assert found.keys() == expected.keys()
    states = [name for name in expected if "momentum_buffer" in name or "exp_avg" in name]
    assert len(states) > 10
    assert_equal_to_rounding({name: found[name] for name in states}, {name: expected[name] for name in states})


@pytest.mark.parametrize(
    ("stage", "network", "rank"),
    grid([(1, "segmentation", 0), (2, "discriminators", 1)], stay=[(2, "discriminators", 1)]),
)
def test_gradients_of_one_network_that_are_no_numbers_end_the_training_on_every_rank(
    server: RankServer, town: Path, tmp_path: Path, stage: int, network: str, rank: int
) -> None:
    run = run_in(tmp_path)
    asked = asked_by(changed(tmp_path, deepspeed_config={"zero_stage": stage}))
    words = [network, "3", "1000", str(rank), "0", str(PROJECT / TRAIN), *training_words(town, run, *WORDS)]
    job = server.start("tests/exact/spoil_gradients.py", words, 2, asked)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    assert "Traceback" not in job.output()
    for rank in range(2):
        expected = f"error (rank {rank}): r, step 3: gradients of {network} are no finite numbers; "
        assert job.output().count(expected) == 1, job.output()
    assert newest_step(run) == HALF


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deepspeed_config": {"zero_stage": 3}}, "zero_stage 3 is not supported: expected 1 or 2"),
        (
            {"deepspeed_config": {"offload_optimizer_device": "cpu"}},
            "offload_optimizer_device cpu is not supported; leave it out",
        ),
        (
            {"deepspeed_config": {"gradient_accumulation_steps": 4}},
            "gradient_accumulation_steps 4 is not supported; leave it out, or give accumulate to the training",
        ),
        (
            {"deepspeed_config": {"gradient_clipping": 0.5}},
            "gradient_clipping 0.5 is not supported; leave it out: no method here clips",
        ),
        ({"mixed_precision": "fp16"}, "precision fp16"),
        ({"deepspeed_config": {"deepspeed_config_file": "settings.json"}}, "deepspeed_config_file is not supported"),
    ],
)
def test_what_several_networks_do_not_bear_is_refused_with_one_message(
    server: RankServer, town: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    config = changed(tmp_path, **changes)
    job = server.start(TRAIN, training_words(town, run_in(tmp_path), *WORDS), 2, asked_by(config))
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    messages = [line for line in job.output().splitlines() if line.startswith("error (rank ")]
    assert len(messages) == 2
    assert all(expected in message for message in messages)
    assert "Traceback" not in job.output()
    assert not (tmp_path / "snapshots").exists()


@pytest.mark.grid
def test_a_teacher_and_its_rule_of_trust_follow_the_plain_run(server: RankServer, town: Path, tmp_path: Path) -> None:
    words = ("method.name=masked_consistency", "method.teacher.trust=entropy", "method.masks.block=8")
    plain, run = run_in(tmp_path, "plain"), run_in(tmp_path)
    train(server, town, plain, *words)
    train(server, town, run, *words, stage=2)
    assert {"/teacher/conv1.weight", "/entropies/histograms"} < everything_learned(plain).keys()
    assert_follows(run, plain)
