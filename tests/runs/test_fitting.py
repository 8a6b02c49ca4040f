"""A checkpoint whose bytes are as they were written, but do not fit its run, is broken: the one before it is used."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from esl_dist.errors import UserError
from esl_dist.runs.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    TRAINING,
    load_checkpoint,
    load_newest,
    run_config,
    save_checkpoint,
)
from esl_dist.runs.fitting import BrokenCheckpointError
from tests.builders import CLASS_ENTRIES, class_set
from tests.training.small_runs import KEEP_ALL, after_a_step, checkpoint, configuration, reseal, save_run

SEGMENTATION, DISCRIMINATORS = "segmentation.safetensors", "discriminators.safetensors"
FIRST = "conv1.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the tiny network with two checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "r"
    save_run(run, 1)
    save_checkpoint(run, replace(after_a_step(configuration(), class_set()), step=2), KEEP_ALL)
    return run


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the second checkpoint; beside it is the first, which is whole."""
    return Path(shutil.copytree(run, tmp_path / "r")) / "checkpoints/step-00000002"


def is_passed_over(folder: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Make sure that a checkpoint is refused by itself, and that its run goes on from the one before it."""
    with pytest.raises(BrokenCheckpointError, match=message) as refused:
        load_checkpoint(folder)
    assert len(str(refused.value).splitlines()) == 1
    newest = load_newest(folder.parent.parent)
    assert newest is not None
    assert newest.step == 1
    assert f"warning: passing over a broken checkpoint: {refused.value}\n" == capsys.readouterr().err


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: {name: value for name, value in manifest.items() if name != key}


def with_config(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: {**manifest, "config": {**manifest["config"], **changes}}


MANIFESTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    *(
        (without(key), f"manifest.json: no '{key}'")
        for key in ("step", "config", "class_set", "classes", "shards", "files", "format_version")
    ),
    (lambda manifest: {**manifest, "step": "2"}, "manifest.json: step: expected a whole number from 1"),
    (lambda manifest: {**manifest, "step": 0}, "manifest.json: step: expected a whole number from 1"),
    (lambda manifest: {**manifest, "step": True}, "manifest.json: step: expected a whole number from 1"),
    (lambda manifest: {**manifest, "format_version": "2"}, "manifest.json: format_version: expected a whole number"),
    (lambda manifest: {**manifest, "class_set": ["village3"]}, "manifest.json: class_set: expected text"),
    (lambda manifest: {**manifest, "classes": {}}, "manifest.json: classes: expected a list"),
    (lambda manifest: {**manifest, "classes": CLASS_ENTRIES[:2]}, r"segmentation\.safetensors: .*: expected a tensor"),
    (lambda manifest: {**manifest, "shards": ["a"]}, "manifest.json: shards: expected a mapping"),
    (lambda manifest: {**manifest, "shards": {"source": "a"}}, "manifest.json: shards.source: expected a SHA-256"),
    (
        lambda manifest: {**manifest, "shards": {"other": "a" * 64}},
        "manifest.json: shards: key: expected one of",
    ),
    (lambda manifest: {**manifest, "files": {}}, "manifest.json: files: expected the files discriminators"),
    (lambda manifest: {**manifest, "data_sets": {"source": "../x"}}, "manifest.json: data_sets.source '../x' is impo"),
    (lambda manifest: {**manifest, "packed_sizes": {"source": [0, 3]}}, r"manifest.json: packed_sizes.source\[0\]: e"),
    (with_config(name="../../evil"), "manifest.json: config.name '../../evil' is impossible"),
    (with_config(name=None), "manifest.json: config.name: expected text, got None"),
    (with_config(method={"name": "other"}), "manifest.json: config.method.name: expected one of source_only, minent"),
    (with_config(steps="many"), "manifest.json: config: steps"),
    (with_config(network={"architecture": "vgg"}), "manifest.json: config: network.architecture=vgg is impossible"),
    (with_config(network={"architecture": "resnet18"}), r"segmentation\.safetensors: it lacks \d+ tensors, such as"),
    (with_config(method={"name": "source_only"}), "manifest.json: files: expected the files segmentation"),
    (lambda manifest: [manifest], "manifest.json: expected a mapping, got a list of 1"),
]


@pytest.mark.parametrize(("change", "message"), MANIFESTS)
def test_a_manifest_that_says_what_cannot_be_is_broken(
    folder: Path, change: Callable[[Any], Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reseal(folder, change)
    is_passed_over(folder, message, capsys)


def test_a_manifest_with_keys_of_a_later_version_is_read(folder: Path) -> None:
    reseal(folder, lambda manifest: {**manifest, "data_sets": {"source": "gta5"}, "later": [1]})
    assert load_checkpoint(folder).step == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "it lacks 1 tensors, such as 'conv1.weight'"),
        (torch.ones(24, 3, 7, 6), r"conv1\.weight: expected a tensor of shape \[24, 3, 7, 7\], got \[24, 3, 7, 6\]"),
        (torch.full((24, 3, 7, 7), float("nan")), "'conv1.weight' holds numbers that are not finite"),
        (torch.full((24, 3, 7, 7), float("-inf")), "'conv1.weight' holds numbers that are not finite"),
        (torch.full((24, 3, 7, 7), 1e300, dtype=torch.float64), "'conv1.weight' holds numbers that are not finite"),
        (torch.ones(24, 3, 7, 7, dtype=torch.int32), r"conv1\.weight: expected torch\.float32, got torch\.int32"),
        (torch.ones(24, 3, 7, 7, dtype=torch.complex64), r"conv1\.weight: expected torch\.float32, got torch\.complex"),
    ],
)
def test_a_tensor_that_is_not_the_network_s_is_named(
    folder: Path, value: Tensor | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {name: tensor for name, tensor in load_file(folder / SEGMENTATION).items() if name != FIRST}
    save_file(others if value is None else {**others, FIRST: value}, folder / SEGMENTATION)
    reseal(folder)
    is_passed_over(folder, message, capsys)


def test_large_numbers_whose_sum_overflows_are_finite_and_variances_are_not_negative(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(folder / SEGMENTATION)
    save_file({**state, FIRST: torch.full((24, 3, 7, 7), 3e38)}, folder / SEGMENTATION)
    reseal(folder)
    load_checkpoint(folder)
    for value, problem in ((-1.0, "a variance below 0"), (float("inf"), "numbers that are not finite")):
        save_file({**state, "bn1.running_var": torch.full((24,), value)}, folder / SEGMENTATION)
        reseal(folder)
        is_passed_over(folder, f"'bn1.running_var' holds {problem}", capsys)


def test_a_second_moment_that_overflowed_is_no_damage(folder: Path) -> None:
    training = torch.load(folder / TRAINING, weights_only=True)
    training["optimizers"]["discriminators"]["state"][0]["exp_avg_sq"].fill_(float("inf"))
    torch.save(training, folder / TRAINING)
    reseal(folder)
    assert load_checkpoint(folder).step == 2


class Trap:
    """Executed when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path("trap_was_sprung").touch, ()


@pytest.mark.parametrize("name", [SEGMENTATION, DISCRIMINATORS, TRAINING])
@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Trap()), b"", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"],
    ids=["pickle", "empty", "header beyond the file", "header of another kind"],
)
def test_another_kind_of_file_is_refused_and_not_executed(
    folder: Path,
    name: str,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(content)
    reseal(folder)
    is_passed_over(folder, rf"{name}: refused: it is damaged or holds more than tensors and plain values", capsys)
    assert not (tmp_path / "trap_was_sprung").exists()


def changed(*place: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value inside the state of a training; None as `to` deletes it."""

    def change(training: dict[str, Any]) -> None:
        *outer, last = place
        group: Any = training
        for key in outer:
            group = group[key]
        if to is None:
            del group[last]
        else:
            group[last] = to

    return change


SGD_GROUP = ("optimizers", "segmentation", "param_groups")
SGD_STATE = ("optimizers", "segmentation", "state", 0)
ADAM_STATE = ("optimizers", "discriminators", "state", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, "no 'optimizers'"),
        (changed("optimizers", to=3), "optimizers: expected the optimisers segmentation, discriminators, got 3"),
        (changed("optimizers", "discriminators", to=None), "optimizers: expected the optimisers segmentation, discrim"),
        (changed("optimizers", "segmentation", to=[]), r"optimizers\.segmentation: expected a mapping"),
        (changed(*SGD_GROUP, 3, to=None), r"param_groups: expected 4 groups of parameters"),
        (changed(*SGD_GROUP, 1, "params", to=[1]), r"param_groups\[1\]\.params: expected 8 parameters"),
        (changed(*SGD_GROUP, 0, "name", to="other"), r"param_groups\[0\]\.name: expected 'stem', got 'other'"),
        (changed(*SGD_GROUP, 0, "momentum", to=0.5), r"param_groups\[0\]\.momentum: expected 0\.9, got 0\.5"),
        (changed(*SGD_GROUP, 0, "maximize", to=True), r"param_groups\[0\]\.maximize: expected False, got True"),
        (changed(*SGD_GROUP, 0, "rate_factor", to=None), r"param_groups\[0\]: no 'rate_factor'"),
        (changed(*SGD_GROUP, 0, "lr", to=float("nan")), r"param_groups\[0\]\.lr: expected a number from 0"),
        (changed(*SGD_GROUP, 0, "lr", to=float("inf")), r"param_groups\[0\]\.lr: expected a number from 0 to 3\.4"),
        (
            changed(*SGD_STATE, "momentum_buffer", to=torch.ones(1).expand(24, 3, 7, 7)),
            r"state\[0\]\.momentum_buffer: it uses one number in several",
        ),
        (changed(*ADAM_STATE, "step", to=None), r"state\[0\]: expected exp_avg and exp_avg_sq and step"),
        (changed(*ADAM_STATE, "exp_avg", to=torch.ones(2)), r"state\[0\]\.exp_avg: expected a tensor of shape"),
        (changed(*ADAM_STATE, "exp_avg_sq", to=torch.ones(1).expand(10**9)), r"exp_avg_sq: expected a tensor of shape"),
        (changed(*ADAM_STATE, "step", to=torch.tensor(-1.0)), r"step: expected numbers of at least 0"),
        (
            changed(*ADAM_STATE[:-1], 99, to={}),
            r"state: expected numbers of parameters below 20",
        ),
        (changed("scaler", to=None), "no 'scaler'"),
        (changed("scaler", "scale", to=0.0), "scaler.scale: expected a number from"),
        (changed("scaler", "_growth_tracker", to=1.5), "scaler._growth_tracker: expected a whole number"),
        (changed("precision", to="fp64"), "precision: expected one of no, tf32, bf16, fp16, got 'fp64'"),
        (changed("corrupt_samples", "totals", to=[1]), "corrupt_samples.totals: expected a list of 2 whole numbers"),
        (changed("corrupt_samples", "epochs", to=[-1, 0]), r"corrupt_samples\.epochs\[0\]: expected a whole number"),
        (changed("corrupt_samples", "drawn", to=[3, -1]), r"corrupt_samples\.drawn\[1\]: expected a whole number"),
        (changed("journal", "losses", to=3), "journal.losses: expected a mapping"),
        (changed("journal", "losses", "source", to=float("inf")), "journal.losses.source: expected a finite number"),
        (changed("journal", "updates", to=0), "journal.updates: expected a whole number from 1"),
    ],
)
def test_a_state_that_no_training_goes_on_from_is_named(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training = torch.load(folder / TRAINING, weights_only=True)
    change(training)
    torch.save(training, folder / TRAINING)
    reseal(folder)
    is_passed_over(folder, rf"training\.pt: .*{message}", capsys)


def test_what_earlier_versions_did_not_write_may_be_missing(folder: Path) -> None:
    training = torch.load(folder / TRAINING, weights_only=True)
    torch.save({key: training[key] for key in ("optimizers", "scaler")}, folder / TRAINING)
    reseal(folder)
    assert load_checkpoint(folder).step == 2


def test_a_checkpoint_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    for changes in ({"name": "../../evil"}, {"name": None}):
        config = configuration(**changes)
        state = checkpoint(1, {}, config, class_set())
        with pytest.raises(UserError, match=r"manifest\.json: config\.name.*; nothing was written"):
            save_checkpoint(tmp_path, state, KEEP_ALL)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_name_in_a_run_s_settings_is_a_name(tmp_path: Path) -> None:
    save_run(tmp_path, 1)
    assert run_config(tmp_path).name == "r"
    file = tmp_path / RUN_CONFIG
    for name in ("../../evil", "null"):
        file.write_text(file.read_text().replace("name: r\n", f"name: {name}\n", 1))
        with pytest.raises(UserError, match=r"config\.yaml: name .* is impossible"):
            run_config(tmp_path)
        file.write_text(file.read_text().replace(f"name: {name}\n", "name: r\n", 1))


def test_want_of_memory_says_nothing_about_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_newest(folder.parent.parent)
    assert json.loads((folder / MANIFEST).read_text())["step"] == 2
