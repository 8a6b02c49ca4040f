"""A training says what it is about to do and what it made, so that nobody has to guess."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_files import from_dictionary
from esl_dist.training.account import Outcome, beginning, end
from esl_dist.training.data import TrainingData, open_training_data
from esl_dist.training.optimisation import schedule_note
from tests.builders import drawn_samples, write_shards

RANKS: Any = SimpleNamespace(device=torch.device("cpu"), precision="no", zero_stage=None)
RUN = Path("experiments/snapshots/r")


def training(folder: Path, **changes: Any) -> tuple[settings.Train, TrainingData]:
    for domain, number in (("s", 4), ("t", 3)):
        write_shards(folder / domain, drawn_samples(number), image_size=(16, 12), label_size=(16, 12))
    values: dict[str, Any] = {
        "name": "r",
        "source": {"path": str(folder / "s")},
        "target": {"path": str(folder / "t"), "size": [8, 6]},
        "batch_size": 2,
    }
    config = from_dictionary(settings.Train, values | changes, "tests")
    return config, open_training_data(config, METHODS[config.method.name])


def facts(text: str) -> dict[str, str]:
    """Return the facts of an account by name, its title under the empty one."""
    title, *lines = text.splitlines()
    return {"": title} | {line[2:].split("  ")[0]: line.split("  ")[-1].strip() for line in lines}


def test_the_beginning_names_data_batch_network_schedule_and_folders(tmp_path: Path) -> None:
    config, data = training(tmp_path)
    assert facts(beginning(config, data, RANKS, RUN, 0)) == {
        "": "r: advent on 4 source and 3 target samples, 1 process on cpu, precision no, from step 0 to 120000",
        "source": f"{tmp_path}/s: village train, 4 samples at 16×12 as packed",
        "target": f"{tmp_path}/t: village train, 3 samples at 8×6",
        "classes": "3 (village3)",
        "batch": "2 samples of each domain a step, 2 a process",
        "network": "resnet101, auxiliary head, shared batch norm; random weights (no network.start)",
        "schedule": "learning rate 0.00025, at the end 55.5 % of it; checkpoints every 2000 steps",
        "seed": "0",
        "run": str(RUN),
        "curves": "experiments/logs/r",
    }


def test_the_beginning_names_settings_without_an_effect(tmp_path: Path) -> None:
    config, data = training(tmp_path, method={"name": "advent", "host": "minent", "teacher": {"momentum": 0.5}})
    told = facts(beginning(config, data, RANKS, RUN, 0))["without effect"]
    assert told == "method.host, method.teacher.momentum"


def test_the_beginning_says_where_the_weights_come_from(tmp_path: Path) -> None:
    config, data = training(tmp_path, network={"start": "w.pth", "auxiliary_head": False})
    assert facts(beginning(config, data, RANKS, RUN, 0))["network"] == (
        "resnet101, no auxiliary head, shared batch norm; weights of w.pth"
    )
    assert facts(beginning(config, data, RANKS, RUN, 7))["network"].endswith("weights of the checkpoint of step 7")


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (
            {"architecture": "timm/mobilenetv2_100", "pretrained": True},
            "timm's pretrained weights of timm/mobilenetv2_100",
        ),
        ({"start": "w.pth", "start_without": "heads"}, "weights of w.pth without its heads"),
    ],
)
def test_the_beginning_says_which_weights_are_pretrained_and_which_are_left_out(
    tmp_path: Path, network: dict[str, Any], told: str
) -> None:
    config, data = training(tmp_path, network={**network, "auxiliary_head": False})
    assert facts(beginning(config, data, RANKS, RUN, 0))["network"].endswith(f"; {told}")


@pytest.mark.parametrize(
    ("crop", "told"),
    [
        ([20, 12], ""),
        ([24, 18], ""),
        ([25, 12], ", which no picture fills: what lies beyond is black"),
        ([16, 19], ", which no picture fills (are width and height exchanged?): what lies beyond is black"),
    ],
)
def test_the_beginning_tells_of_parts_that_no_picture_fills(tmp_path: Path, crop: list[int], told: str) -> None:
    source = {"path": str(tmp_path / "s"), "crop": crop, "scale": [0.5, 1.5]}
    config, data = training(tmp_path, source=source)
    found = facts(beginning(config, data, RANKS, RUN, 0))["source"]
    assert found.endswith(f", parts of {crop[0]}×{crop[1]}{told}")


def test_the_beginning_of_source_only_training_has_no_target(tmp_path: Path) -> None:
    config, data = training(tmp_path, method={"name": "source_only"}, accumulate=2)
    told = facts(beginning(config, data, RANKS, RUN, 0))
    assert "target" not in told
    assert told["batch"] == "2 samples of the source a step, 1 a process in each of 2 passes"


AVERAGE = "moving average, momentum 0.99; its labels"


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"confidence": 0.9}, f"{AVERAGE} weigh the share of their picture that it is sure of to 0.9"),
        (
            {"trust": "entropy"},
            f"{AVERAGE} count where its entropy is at most the median of the class (at least 0.1)",
        ),
        (
            {"trust": "entropy", "entropy_as": "weight", "entropy_floor": 0.2},
            f"{AVERAGE} weigh the share of their picture where its entropy is at most the median of the class "
            "(at least 0.2)",
        ),
    ],
)
@pytest.mark.parametrize("name", ["masked_consistency", "self_training"])
def test_the_beginning_tells_of_the_teacher_and_of_what_its_labels_are_trusted_by(
    tmp_path: Path, name: str, teacher: dict[str, Any], told: str
) -> None:
    config, data = training(tmp_path, method={"name": name, "host": "minent", "teacher": {"momentum": 0.99, **teacher}})
    found = facts(beginning(config, data, RANKS, RUN, 0))
    assert found["teacher"] == told
    assert found.get("host") == ("minent" if name == "masked_consistency" else None)


def test_the_beginning_tells_of_a_warm_up(tmp_path: Path) -> None:
    config, data = training(tmp_path, optimizer={"warm_up_steps": 500})
    told = facts(beginning(config, data, RANKS, RUN, 0))["schedule"]
    assert told.startswith("learning rate 0.00025, approached over 500 steps, at the end 55.5 % of it;")


def test_the_beginning_tells_of_adamw_and_the_share_that_its_warm_up_begins_with(tmp_path: Path) -> None:
    config, data = training(tmp_path, optimizer={"kind": "adamw", "warm_up_steps": 1, "warm_up_from": 0.001})
    told = facts(beginning(config, data, RANKS, RUN, 0))["schedule"]
    assert told.startswith("AdamW, learning rate 0.00025, approached over 1 step from 0.001 of it, at the end 55.5 %")


@pytest.mark.parametrize(("steps", "told"), [(20_000, True), (200_000, False)])
def test_the_beginning_warns_of_a_rate_that_barely_falls(tmp_path: Path, steps: int, told: bool) -> None:
    config, data = training(tmp_path, steps=steps)
    note = facts(beginning(config, data, RANKS, RUN, 0)).get("note", "")
    assert note == schedule_note(config.optimizer, steps)
    assert bool(note) == told


def test_the_beginning_tells_what_is_validated_and_when(tmp_path: Path) -> None:
    config, data = training(tmp_path, validate_every=5, validation={"path": "shards/val", "size": [64, 32]})
    told = facts(beginning(config, data, RANKS, RUN, 0))["validations"]
    assert told == "shards/val at 64×32, every 5 steps and after the last"


@pytest.mark.parametrize(("keep_every", "warned"), [(0, True), (5, False)])
def test_the_beginning_says_that_no_step_is_the_best_without_labels(
    tmp_path: Path, keep_every: int, warned: bool
) -> None:
    config, data = training(tmp_path, validate_every=5, checkpoints={"keep_every": keep_every})
    told = facts(beginning(config, data, RANKS, RUN, 0))["validations"]
    assert told.startswith(f"{tmp_path}/t, labels not read, at the size of the training, every 5 steps")
    assert ("no step is the best without labels, checkpoints.keep_every=…" in told) == warned


OUTCOME = Outcome(
    step=7, stopped=False, interrupted=False, losses={"source/main": 0.25}, steps_of_start=4, seconds=64.0
)


def test_the_end_names_what_was_made_how_long_it_took_and_what_comes_next(tmp_path: Path) -> None:
    config, data = training(tmp_path)
    run = tmp_path / "of me/snapshots/r"
    (run / "checkpoints/step-00000007").mkdir(parents=True)
    assert facts(end(config, data, run, ("a.pth", "b.pth"), OUTCOME)) == {
        "": "r: finished at step 7",
        "took": "1 min 4 s for 4 steps of this start, 0.25 samples/s",
        "last losses": "source/main 0.25",
        "weights": f"{run}/a.pth, {run}/b.pth",
        "checkpoints": f"{run}/checkpoints: step-00000007",
        "curves": "tensorboard --logdir experiments/logs",
        "to score it": f"esl-dist evaluate 'checkpoint={run}' data.path=… 'output={run}/scores/r.json'",
        "to label": f"esl-dist pseudo-label 'checkpoint={run}' target.path={tmp_path}/t output=…",
    }


def test_the_end_of_source_only_training_has_nothing_to_label(tmp_path: Path) -> None:
    config, data = training(tmp_path, method={"name": "source_only"})
    told = facts(end(config, data, RUN, (), replace(OUTCOME, losses={})))
    assert "to label" not in told
    assert told["last losses"] == "no loss (every step skipped)"
