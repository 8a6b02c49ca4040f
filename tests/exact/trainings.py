"""Trainings of the tiny network that are over in seconds, and everything that they leave in their last checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from esl_dist.reporting.scalar_file import SCALARS, read_scalars
from esl_dist.runs.checkpoints import checkpoint_folder, checkpoint_folders, load_checkpoint, read_manifest
from tests.on_ranks import PROJECT, Job, RankServer
from tests.programs import TINY_TRAINING

TRAIN = "launch/train.py"
IN_FLOAT64 = "tests/exact/in_float64.py"
BASIS = (
    *TINY_TRAINING,
    "network.batch_norm=per_domain",
    "batch_size=4",
    "pictures_every=0",
    "checkpoints.every=1",
    "timeout_minutes=1",
)

ROUNDING = 1e-9
"""Of float64 sums added in another order, after a few steps, relative to the largest value of a tensor.

They were seen to differ by 1e-13. A float32 anywhere on the way would show: it rounds by 6e-8.
"""
LAST_PLACE = float(torch.finfo(torch.float32).eps)
"""Of a float32, relative: what TensorBoard keeps of two values that differ by `ROUNDING` differs by no more."""


def training_words(town: Path, run: Path, *words: str) -> list[str]:
    """Return the command line of a training that leaves its run in the folder `run`."""
    places = [f"source.path={town}/source_train", f"target.path={town}/target_train"]
    return [*BASIS, *places, f"experiments={run.parent.parent}", f"name={run.name}", *words]


def start_training(server: RankServer, town: Path, run: Path, ranks: int, *words: str) -> Job:
    return server.start(TRAIN, training_words(town, run, *words), ranks)


def train(server: RankServer, town: Path, run: Path, ranks: int, *words: str) -> str:
    """Train to the end; returns what was printed."""
    job = start_training(server, town, run, ranks, *words)
    assert job.exit_codes() == [0] * ranks, job.output()
    return job.output()


def train_in_float64(server: RankServer, town: Path, run: Path, ranks: int, *words: str) -> str:
    """Train as `train` does, where what is compared was added up in another order."""
    job = server.start(IN_FLOAT64, [str(PROJECT / TRAIN), *training_words(town, run, *words)], ranks)
    assert job.exit_codes() == [0] * ranks, job.output()
    return job.output()


def run_in(folder: Path, name: str = "r") -> Path:
    return folder / "snapshots" / name


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    found = checkpoint_folders(run)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def assert_whole(run: Path, step: int) -> None:
    assert read_manifest(checkpoint_folder(run, step)).step == step


def everything_learned(run: Path, step: int | None = None) -> dict[str, Any]:
    """Return every tensor and value of a checkpoint, by default the newest: networks, optimisers, loss scaler, step."""
    saved = load_checkpoint(checkpoint_folder(run, newest_step(run) if step is None else step))
    return dict(_leaves({**saved.networks, **saved.training, "step": saved.step}, ""))


def entries(run: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard shows of a run: by name, then by step; there is one value of a name at a step.

    scalars.csv has the same ones, each once.
    """
    logs = run.parent.parent / "logs" / run.name
    events = EventAccumulator(str(logs))
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    by_step = {tag: {event.step: event.value for event in curve} for tag, curve in found.items()}
    assert all(len(by_step[tag]) == len(curve) for tag, curve in found.items())
    lines = list(read_scalars(logs / SCALARS))
    assert len({(step, tag) for step, tag, _ in lines}) == len(lines)
    in_file: dict[str, dict[int, float]] = {tag: {} for _, tag, _ in lines}
    for step, tag, value in lines:
        in_file[tag][step] = float(torch.tensor(value, dtype=torch.float32))
    assert in_file == by_step
    return by_step


def curves(run: Path) -> dict[str, list[float]]:
    """Return what TensorBoard shows of a run that was logged at every step, by name."""
    found = entries(run)
    for curve in found.values():
        assert list(curve) == list(range(1, newest_step(run) + 1))
    return {tag: list(curve.values()) for tag, curve in found.items()}


def losses(run: Path) -> dict[str, list[float]]:
    """Return the losses of every step, from TensorBoard."""
    return {tag: curve for tag, curve in curves(run).items() if tag.startswith("loss/")}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _leaves(one, f"{name}/{number}")
    else:
        yield name, value


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert any("momentum_buffer" in name for name in one)
    assert any("exp_avg" in name for name in one)
    different = different_bits(one, other)
    assert different == [], f"{len(different)} of {len(one)}"


def different_bits(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of what is not the same."""
    assert one.keys() == other.keys()
    return [name for name in one if not _equal(one[name], other[name])]


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def assert_equal_to_rounding(
    found: dict[str, Any], expected: dict[str, Any], rounding: float = ROUNDING, where: str = "", absolute: float = 0
) -> None:
    """Hold tensors of floats to each other up to rounding, relative to their largest value, and all else to the bit.

    Of sums that cancel to 0 nothing but rounding is left: a difference of up to `absolute` is borne, too.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0:
            difference = float((found[name].double() - value.double()).abs().max())
            bound = max(rounding * float(value.abs().max()), absolute)
            assert difference <= bound, f"{where}{name}: {difference}"
        else:
            assert _equal(found[name], value), where + name
