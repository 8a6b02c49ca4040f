"""What takes long to import is imported when it is needed: not for `--help`, nor for a mistake in the settings."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path

import pytest

from esl_dist.config import Evaluate, Pictures, PseudoLabel, Shards, Train
from esl_dist.errors import UserError
from esl_dist.inference.contradictions import check_evaluation, check_labelling
from esl_dist.training.contradictions import check_inputs
from tests.grids import grid
from tests.on_ranks import PROJECT
from tests.programs import TINY_TRAINING, environment

HEAVY = ("torch", "numpy", "cv2", "PIL", "accelerate", "tensorboard", "torchvision", "webdataset", "deepspeed")
PROGRAMS = (
    *("launch/train", "launch/pseudo_label", "launch/evaluate", "launch/predict", "launch/demo"),
    "shards/prepare",
)
COMMAND = "esl_dist/__main__"
GIVEN = {
    "launch/train": ("source.path={here}", "target.path={here}"),
    "launch/pseudo_label": ("checkpoint={here}", "target.path={here}", "output={here}-output"),
    "launch/evaluate": ("checkpoint={here}", "data.path={here}"),
    "launch/predict": ("checkpoint={here}/index.json", "pictures={here}/empty", "output={here}-output"),
    "launch/demo": (),
    COMMAND: ("train", "source.path={here}", "target.path={here}"),
    "launch/slurm/check": ("train", "source.path={here}", "target.path={here}"),
    "shards/prepare": ("dataset={here}/d.yaml", "split=train", "output={here}-output"),
}
WATCHED = """
import atexit, os, runpy, sys
atexit.register(lambda: open(os.environ["NOTES"], "w").write(" ".join(sys.modules)))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tmp_path: Path, program: str, *words: str, **variables: str) -> tuple[int, str, set[str]]:
    """Run a program; returns its exit code, what it said, and the modules that it had imported at its end."""
    notes = tmp_path / "modules"
    called = [sys.executable, "-c", WATCHED, str(PROJECT / f"{program}.py"), *words]
    done = subprocess.run(
        called, capture_output=True, text=True, check=False, env={**environment(), "NOTES": str(notes), **variables}
    )
    return done.returncode, done.stdout + done.stderr, set(notes.read_text().split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_nothing_that_is_slow_to_import(program: str, tmp_path: Path) -> None:
    code, said, modules = run(tmp_path, program, "--help")
    assert (code, said.startswith("usage: ")) == (0, True), said
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "words", [("--help",), ("train", "--help"), ("pack", "--help", "size"), ("recipes",), ("trian",)]
)
def test_the_command_answers_without_what_is_slow_to_import(words: Sequence[str], tmp_path: Path) -> None:
    code, said, modules = run(tmp_path, COMMAND, *words)
    assert code == (2 if "trian" in words else 0), said
    assert modules.isdisjoint(HEAVY)
    # Which reading settings needs, and a list of commands does not.
    assert "omegaconf" not in modules or words != ("--help",)


MISTAKES = {
    "no_such_setting": ("no_such_setting=1",),
    "--config is near": ("--confg", "x.yaml"),
    "missing.yaml": ("--config", "{here}/missing.yaml"),
    "expected": ("seed=many", "timeout_minutes=long", "processes=all"),
}


@pytest.mark.parametrize(
    ("program", "message"), grid(product(PROGRAMS, MISTAKES), stay=list(zip(PROGRAMS, cycle(MISTAKES), strict=False)))
)
def test_a_mistake_in_the_configuration_is_told_before_anything_slow_is_imported(
    program: str, message: str, tmp_path: Path
) -> None:
    known = {"launch/demo": ("seed",), "shards/prepare": ("processes",)}.get(program, ("timeout_minutes",))
    wrong = [word for word in MISTAKES[message] if message != "expected" or word.startswith(known)]
    words = [word.format(here=tmp_path) for word in (*GIVEN[program], *wrong)]
    code, said, modules = run(tmp_path, program, *words)
    assert (code, message in said, len(said.splitlines())) == (2, True, 1), said
    assert modules.isdisjoint(HEAVY)


TWO = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CONTRADICTIONS = [
    ("launch/train", ("method.name=advnet",), {}, "method.name=advnet is impossible"),
    ("launch/train", ("target.path=",), {}, "no value for target.path"),
    ("launch/train", ("steps=9", "optimizer.schedule_steps=8"), {}, "goes beyond optimizer.schedule_steps=8"),
    (
        "launch/train",
        ("optimizer.warm_up_steps=250001",),
        {},
        "optimizer.warm_up_steps=250001 goes beyond optimizer.schedule_steps=250000",
    ),
    ("launch/train", ("optimizer.warm_up_from=0.1",), {}, "give optimizer.warm_up_steps=…, or leave it out"),
    ("launch/train", ("validation.path={here}",), {}, "validation.path=… needs steps after which it is looked at"),
    (
        "launch/train",
        ("method.name=source_only", "target.path=", "validate_every=1"),
        {},
        "validate_every=1 needs pictures, and source_only reads no target: give validation.path=…",
    ),
    ("launch/train", ("validate_every=1", "validation.path={here}/gone"), {}, "gone: no such folder of shards"),
    ("launch/train", ("batch_size=3", "accumulate=2"), {}, "batch_size=3 cannot be shared"),
    ("launch/train", ("network.start_without=heads",), {}, "needs weights to start from"),
    ("launch/train", ("compile=true", "checkpoint_activations=true"), {}, "exclude each other"),
    ("launch/train", ("name=a/b",), {}, "name"),
    ("launch/train", ("source.path={here}/gone",), {}, "gone: no such folder of shards"),
    ("launch/train", ("experiments=/proc/x",), {}, "experiments: cannot write into /proc/x: No such file"),
    (
        "launch/pseudo_label",
        ("checkpoint={here}/index.json", "output=/proc/o"),
        {},
        "output: cannot write into /proc/o",
    ),
    (
        "launch/train",
        ("pseudo_labels={here}/gone",),
        {},
        "gone: no such folder of shards; make it with esl-dist pseudo",
    ),
    (
        "launch/train",
        ("experiments={here}", "network.start={here}/gone"),
        {},
        "gone: no such file of weights",
    ),
    ("launch/train", ("source.path={here}/empty",), {}, "empty: no index.json, so no complete folder of shards"),
    ("launch/train", ("experiments={here}", "network.start={here}/empty"), {}, "empty: no checkpoint; expected a run"),
    ("launch/train", (), {"WORLD_SIZE": "2", "RANK": "0"}, "without MASTER_ADDR and MASTER_PORT"),
    ("launch/train", (), {**TWO, "MASTER_PORT": "x"}, "MASTER_PORT=x is impossible"),
    ("launch/evaluate", (), {**TWO, "MASTER_ADDR": "a:1"}, "MASTER_ADDR=a:1 is impossible"),
    ("launch/train", (), {"WORLD_SIZE": "two"}, "WORLD_SIZE=two is impossible"),
    ("launch/train", (), {"ACCELERATE_USE_FSDP": "true"}, "use_fsdp true is not supported"),
    ("launch/train", ("precision=bf16",), {"ACCELERATE_MIXED_PRECISION": "fp16"}, "contradicts the launcher"),
    ("launch/evaluate", ("mode=ensemble",), {}, "mode=ensemble needs its networks"),
    ("launch/evaluate", ("checkpoint={here}/gone",), {}, "gone: no checkpoint"),
    ("launch/evaluate", ("as_packed=true", "data.size=[8,8]"), {}, "as_packed=true contradicts data.size=[8, 8]"),
    (
        "launch/pseudo_label",
        ("as_packed=true", "target.size=[8,8]"),
        {},
        "as_packed=true contradicts target.size=[8, 8]",
    ),
    ("launch/evaluate", ("checkpoint={here}/empty",), {}, "empty: no checkpoint; expected a run folder"),
    ("launch/evaluate", ("checkpoint={here}/empty", "mode=best"), {}, "empty: no run; expected a folder with config"),
    ("launch/evaluate", ("classes_from={here}/gone.yaml",), {}, "gone.yaml: no such configuration file"),
    ("launch/evaluate", ("statistics_from={here}/gone",), {}, "gone: no such folder of shards"),
    ("launch/evaluate", ("output={here}/index.json",), {}, "index.json"),
    ("launch/pseudo_label", ("output={here}",), {}, "is target.path="),
    ("launch/pseudo_label", ("checkpoint={here}/gone",), {}, "gone: no checkpoint"),
    ("launch/pseudo_label", (), {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend INDUCTOR"),
    ("launch/predict", ("pictures={here}/gone",), {}, "gone: there is none; expected a folder, a pattern in quotes"),
    ("launch/predict", ("checkpoint={here}/gone",), {}, "gone: no checkpoint"),
    ("launch/predict", ("save=[]",), {}, "save=[] is impossible: expected at least one"),
    ("launch/predict", ("output=/proc/o",), {}, "output: cannot write into /proc/o"),
    ("shards/prepare", ("size=[30000,8000]", "largest_megapixels=1"), {}, "expected at most largest_megapixels=1"),
    ("launch/slurm/check", ("method.name=advnet",), {}, "method.name=advnet is impossible"),
    ("launch/demo", ("recipes={here}",), {}, "no such recipe"),
    (COMMAND, ("method.name=advnet",), {}, "method.name=advnet is impossible"),
]


@pytest.mark.parametrize(("program", "words", "variables", "message"), CONTRADICTIONS)
def test_settings_that_cannot_be_are_told_before_torch_is_imported(
    program: str, words: Sequence[str], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    own = [word.format(here=tmp_path) for word in (*GIVEN[program], *words)]
    code, said, modules = run(tmp_path, program, *own, **variables)
    assert (code, message in said, len(said.splitlines())) == (2, True, 1), said
    assert "torch" not in modules


def test_a_training_does_without_torchs_compiler(town: Path, tmp_path: Path) -> None:
    """Its import takes longer than a short training."""
    shards = (f"source.path={town}/source_train", f"target.path={town}/target_train", f"experiments={tmp_path}")
    code, said, modules = run(tmp_path, "launch/train", *TINY_TRAINING, *shards, "steps=1")
    assert code == 0, said
    assert "torch" in modules
    assert modules.isdisjoint({"torch._dynamo", "sympy", "torchvision", "webdataset", "deepspeed"})


def test_what_another_machine_may_have_is_not_missed_before_the_ranks_meet(tmp_path: Path) -> None:
    """A rank that ended for it would be waited for."""
    gone = str(tmp_path / "gone")
    checks = [
        (check_inputs, Train(source=Shards(path=gone), target=Shards(path=gone))),
        (check_labelling, PseudoLabel(checkpoint=gone, target=Pictures(path=gone), output=str(tmp_path / "labels"))),
        (check_evaluation, Evaluate(checkpoint=gone, data=Pictures(path=gone))),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        patched.setenv("RANK", "1")
        for check, config in checks:
            check(config)
    for check, config in checks:
        with pytest.raises(UserError, match="gone: no "):
            check(config)
