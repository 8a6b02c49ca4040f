"""DeepSpeed's ZeRO 1 and 2 follow the plain run, and their checkpoints are those of a plain run."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.command_line import EXIT_USER_ERROR
from esl_dist.engine.checkpoints import checkpoint_folder
from tests.exact.ranks import PROJECT, RankServer
from tests.exact.trainings import TRAIN, assert_close, everything_learned, run_in, train, training_words
from tests.programs import environment

pytestmark = [
    pytest.mark.exact,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "c++")) is None, reason="DeepSpeed compiles an operator: no C++ compiler"
    ),
    # The first use compiles.
    pytest.mark.timeout(900),
]

SHIPPED = PROJECT / "launch/accelerate/deepspeed_zero2.yaml"
STEPS, HALF = 4, 2
# Few steps: in float32, a difference of rounding may turn over a ReLU some steps later.
WORDS = (f"steps={STEPS}", "log_every=1", f"checkpoints.every={HALF}")


def launch(config: Path, town: Path, run: Path, *words: str) -> str:
    """Train as a user would; returns what was printed."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(PROJECT / TRAIN)]
    done = subprocess.run(
        [*launcher, *training_words(town, run, *words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
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


def losses(run: Path) -> dict[str, list[float]]:
    """Return the losses of every step, from TensorBoard."""
    events = EventAccumulator(str(run.parent.parent / "logs" / run.name))
    events.Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith("loss/")}
    for curve in curves.values():
        assert [event.step for event in curve] == list(range(1, STEPS + 1))
    return {tag: [event.value for event in curve] for tag, curve in curves.items()}


@pytest.fixture(scope="module")
def plain(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_in(tmp_path_factory.mktemp("plain"))
    train(server, town, run, 2, *WORDS)
    return run


@pytest.fixture(scope="module")
def divided(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_in(tmp_path_factory.mktemp("divided"))
    assert "2 processes on cpu, precision no, DeepSpeed ZeRO stage 2" in launch(SHIPPED, town, run, *WORDS)
    return run


def half_of(run: Path, folder: Path) -> Path:
    """Return a copy of a run that was stopped in the middle."""
    copy = run_in(folder, run.name)
    shutil.copytree(run, copy)
    shutil.rmtree(checkpoint_folder(copy, STEPS))
    return copy


def assert_follows(run: Path, plain: Path) -> None:
    expected = losses(plain)
    assert "loss/discriminator/main" in expected
    found = losses(run)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name] == pytest.approx(curve, rel=1e-4), name
    assert_close(everything_learned(run), everything_learned(plain), 1e-4, 1e-5)


def test_stage_2_follows_the_plain_run(plain: Path, divided: Path) -> None:
    assert_follows(divided, plain)


def test_stage_1_follows_the_plain_run(town: Path, tmp_path: Path, plain: Path) -> None:
    run = run_in(tmp_path)
    config = changed(tmp_path, deepspeed_config={"zero_stage": 1})
    assert "DeepSpeed ZeRO stage 1" in launch(config, town, run, *WORDS)
    assert_follows(run, plain)


def test_a_run_with_deepspeed_goes_on_without_it_on_one_process(
    server: RankServer, town: Path, tmp_path: Path, plain: Path, divided: Path
) -> None:
    run = half_of(divided, tmp_path)
    printed = train(server, town, run, 1, *WORDS)
    assert f"1 process on cpu, precision no, from step {HALF} to {STEPS}" in printed
    assert_close(everything_learned(run), everything_learned(plain), 2e-3, 2e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_without_deepspeed_goes_on_with_it(
    server: RankServer, town: Path, tmp_path: Path, plain: Path, stage: int
) -> None:
    run = half_of(plain, tmp_path)
    config = changed(tmp_path, deepspeed_config={"zero_stage": stage})
    job = server.start(TRAIN, training_words(town, run, *WORDS), 2, asked_by(config))
    assert job.exit_codes() == [0, 0], job.output()
    assert f"DeepSpeed ZeRO stage {stage}, from step {HALF} to {STEPS}" in job.output()
    assert_close(everything_learned(run), everything_learned(plain), 1e-4, 1e-5)


def test_its_checkpoints_hold_the_optimisers_states_of_a_plain_run(plain: Path, divided: Path) -> None:
    expected, found = everything_learned(plain), everything_learned(divided)
    assert found.keys() == expected.keys()
    states = [name for name in expected if "momentum_buffer" in name or "exp_avg" in name]
    assert len(states) > 10
    for name in states:
        scale = float(expected[name].abs().max())
        assert float((found[name] - expected[name]).abs().max()) <= 1e-3 * scale, name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deepspeed_config": {"zero_stage": 3}}, "zero_stage 3 is not supported: expected 1 or 2"),
        (
            {"deepspeed_config": {"offload_optimizer_device": "cpu"}},
            "offload_optimizer_device cpu is not supported: expected none",
        ),
        ({"mixed_precision": "fp16"}, "mixed precision fp16"),
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
