"""The benchmark for a machine with a GPU, at tiny sizes on a CPU: every stage runs, a bad one costs itself alone."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plain_step
from benchmarks.gpu import candidates, machine, precisions, run, step, waits
from benchmarks.gpu.conditions import Conditions, build
from benchmarks.gpu.difference import largest_difference
from benchmarks.gpu.report import markdown
from benchmarks.gpu.run import ALL_SECONDS, SHARES, Place, allowed, run_stage
from benchmarks.gpu.sizes import TINY, Row
from benchmarks.own_step import OwnStep, tensors_of, weights_of
from tests.on_ranks import PROJECT, has_ended

CPU = torch.device("cpu")


@pytest.mark.grid
def test_every_stage_comes_to_its_end_at_tiny_sizes(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "benchmarks/gpu/run.py"), "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    logs = "\n".join(file.read_text()[-2000:] for file in tmp_path.glob("*.log"))
    assert [(one["stage"], one["ended"]) for one in results] == [(name, "done") for name in SHARES], logs
    assert all(one["rows"] for one in results)
    assert done.returncode == 0
    assert (tmp_path / "table.md").read_text() == markdown(results)
    faults = [row for row in results[list(SHARES).index("ranks")]["rows"] if "exit codes" in row]
    assert [row["exit codes"] for row in faults] == ["[3, -9]", "[3, 2]", "[3, 2]"]


def test_ours_and_the_plain_published_step_are_one_step() -> None:
    assert 0 <= float(step.equality(TINY.small, CPU)["largest relative difference"]) < 1e-12


def test_another_step_is_not_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_step, "AUXILIARY_WEIGHT", 0.2)
    with pytest.raises(AssertionError, match="not the same step"):
        step.equality(TINY.small, CPU)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_what_is_no_number_is_infinitely_far_from_everything(number: float, sides: tuple[int, ...]) -> None:
    pair = [{"first": torch.zeros(2), "second": torch.tensor([1.0, 4.0])} for _ in range(2)]
    assert largest_difference(*pair) == 0
    pair[0]["second"] += torch.tensor([0.0, 1.0])
    assert largest_difference(*pair) == 0.25
    for side in sides:
        pair[side]["first"] = torch.tensor([number, 0.0])
    assert largest_difference(*pair) == math.inf


def test_a_step_that_leaves_one_tensor_of_no_numbers_is_not_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_the_last_spoilt(networks: torch.nn.ModuleDict) -> dict[str, torch.Tensor]:
        weights = weights_of(networks)
        next(reversed(weights.values())).fill_(math.nan)
        return weights

    monkeypatch.setattr(step, "weights_of", with_the_last_spoilt)
    with pytest.raises(AssertionError, match="not the same step"):
        step.equality(TINY.small, CPU)


def rows_of(stage: Any) -> list[Row]:
    return list(stage.measure(TINY, CPU))


@pytest.mark.grid
def test_each_step_is_timed_and_each_change_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    flags, changed = torch.backends.cudnn, ("cudnn.benchmark", "cudnn not deterministic", "upsampling by F.interpolate")
    monkeypatch.setattr(step, "CANDIDATES", {name: candidates.CANDIDATES[name] for name in changed})
    before = flags.benchmark, flags.deterministic, flags.allow_tf32, candidates.passes.upsample
    rows = rows_of(step)
    assert (flags.benchmark, flags.deterministic, flags.allow_tf32, candidates.passes.upsample) == before
    expected = [*step.PLAIN_FLAGS, "plain, bf16", *(f"ours, {one}" for one in step.PRECISIONS)]
    expected += [f"ours, bf16, {one}" for one in changed]
    timed = [row["what"] for row in rows if "ms" in row]
    assert timed == [f"batch {TINY.pictures[0]}: {name}" for name in expected]


@pytest.mark.parametrize("name", sorted(candidates.CANDIDATES))
def test_a_change_leaves_the_gradients_as_they_are(name: str) -> None:
    change = candidates.CANDIDATES[name]
    given = Conditions(CPU, dtype=torch.float64)
    plain = unchanged_gradients()
    with change.around():
        changed = gradients(build(TINY.small, given, change))
    assert float((changed - plain).norm() / plain.norm()) < 1e-10


def test_optimisers_are_changed_as_the_project_has_made_them() -> None:
    seen: dict[str, torch.optim.Optimizer] = {}
    change = candidates.CANDIDATES["foreach optimisers"]

    def look_too(optimizers: dict[str, torch.optim.Optimizer]) -> None:
        change.optimizers(optimizers)
        seen.update(optimizers)

    own = build(TINY.small, Conditions(CPU), replace(change, optimizers=look_too))
    assert own()
    groups = [group for optimizer in seen.values() for group in optimizer.param_groups]
    assert [(group["fused"], group["foreach"]) for group in groups] == [(False, True)] * len(groups)
    assert len(seen) == 2


def test_discriminators_in_full_are_not_in_half() -> None:
    seen: set[torch.dtype] = set()
    own = build(TINY.small, Conditions(CPU, "bf16"), candidates.CANDIDATES["discriminators in fp32"])
    for module in own.networks["discriminators"].modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    own()
    assert seen == {torch.float32}


@cache
def unchanged_gradients() -> torch.Tensor:
    return gradients(build(TINY.small, Conditions(CPU, dtype=torch.float64)))


def gradients(own: OwnStep) -> torch.Tensor:
    own.updating.begin_step()
    own.losses()
    found = [one.grad for one in own.networks.parameters() if one.grad is not None]
    assert len(found) > 20
    return torch.cat([one.flatten() for one in found])


def test_the_machine_its_precisions_and_its_kernels_are_told() -> None:
    versions, packages, *ceilings = rows_of(machine)
    assert {"card", "driver", "commit", "date"} <= versions.keys()
    assert packages["torch"] == torch.__version__.partition("+")[0]
    assert len(ceilings) == 4
    told = {str(row["what"]): row for row in precisions.against_float64(TINY.small, CPU)}
    assert 0 < float(told["a step, cpu fp32 against cpu fp64"]["gradients of segmentation"]) < 1e-3
    assert precisions.ten_steps(TINY.small, Conditions(CPU))["the same bits"] == "yes"
    picture = torch.zeros(1, 1, 3, 3)

    def convolve() -> None:
        with torch.profiler.record_function("a span that somebody named"):
            torch.conv2d(picture, picture)

    kernels = [str(row["what"]) for row in waits.profile_of(convolve, CPU)]
    assert any("convolution" in name for name in kernels)
    assert "a span that somebody named" not in kernels


FOUND = """
import json, os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
print(json.dumps({"what": "begun", "child": child.pid}), flush=True)
"""
GOES_WRONG = {
    "hangs": ("print('{\"what\": \"hal', end='', flush=True)\ntime.sleep(600)", "stopped after its 3 s"),
    "crashes": ("os.abort()", "exit code -6"),
    "fails": ("raise ImportError('no module')", "exit code 1"),
}


@pytest.mark.parametrize("how", sorted(GOES_WRONG))
def test_a_stage_that_goes_wrong_leaves_what_it_had_found(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, end = GOES_WRONG[how]
    folder = tmp_path / "benchmarks/gpu"
    folder.mkdir(parents=True)
    (folder / "stage.py").write_text(FOUND + wrong)
    monkeypatch.setattr(run, "PROJECT", tmp_path)
    monkeypatch.setattr(run, "LEAST_SECONDS", 0)
    result = run_stage("step", 3, Place(tmp_path, "tiny"))
    assert result["ended"] == end
    (row,) = result["rows"]
    assert row["what"] == "begun"
    deadline = time.monotonic() + 30
    while not has_ended(row["child"]):
        assert time.monotonic() < deadline, "what a stage has started outlives it"
        time.sleep(0.01)
    table = markdown([result])
    assert f"Not whole: {end}" in table
    assert "| begun | " in table
    assert ("no module" in result["words"]) == (how == "fails")


def test_every_stage_has_its_share_whatever_others_take() -> None:
    stages = list(SHARES)
    assert ALL_SECONDS <= 530
    left = float(ALL_SECONDS)
    for number, name in enumerate(stages):
        may_take = allowed(stages[number + 1 :], left)
        assert may_take == SHARES[name], "the one before took all that it may"
        assert allowed(stages[number + 1 :], left + 7) == may_take + 7, "the one before left something"
        left -= may_take


def test_a_stage_without_time_is_not_started(tmp_path: Path) -> None:
    result = run_stage("jobs", 4.9, Place(tmp_path, "tiny"))
    assert (result["ended"], result["words"]) == ("not started", "4.9 s were left")
    assert not list(tmp_path.iterdir())
    assert "Not whole: not started: 4.9 s were left" in markdown([result])


def test_a_full_run_without_a_gpu_is_refused() -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU")
    command = [sys.executable, str(PROJECT / "benchmarks/gpu/run.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr


@pytest.mark.parametrize(("half", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_the_plain_step_computes_in_bfloat16_if_asked(half: bool, dtype: torch.dtype) -> None:
    plain, seen = plain_step.build("tiny", 19, 4, half), set()
    for network in (plain.networks["segmentation"].layer6, plain.networks["discriminators"].main):
        network.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    plain(*tensors_of(step.pictures_of(TINY.small, Conditions(CPU))))
    assert seen == {dtype}


@pytest.mark.grid
def test_the_stages_of_the_step_need_few_packages() -> None:
    absent = ("accelerate", "safetensors", "tensorboard", "torchvision", "webdataset", "deepspeed")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); "
    program += "from benchmarks.gpu import machine, precisions, step, waits"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False).returncode == 0


def test_the_plain_step_learns() -> None:
    given = Conditions(CPU)
    plain = step.plain_of(TINY.small, given)
    before = [one.detach().clone() for one in plain.networks.parameters() if one.requires_grad]
    plain(*tensors_of(step.pictures_of(TINY.small, given)))
    after = [one for one in plain.networks.parameters() if one.requires_grad]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
