"""Runs with checkpoints to be scored, without the training, and a scorer that remembers what it was asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from esl_dist.config_files import save_config
from esl_dist.data.labels import class_names
from esl_dist.files import sha256_of_file
from esl_dist.runs.checkpoints import MANIFEST, RUN_CONFIG, checkpoint_folder
from tests.builders import class_set
from tests.training.small_runs import configuration, save_state

MADE_WITH = {"data": "abc", "size": [8, 6], "statistics_from": None}
CHECKPOINTS = {"every": 2, "keep_every": 4, "keep_newest": 1}
LONG = 5.0
"""Minutes: more than any of these tests takes, so that what waits has to be woken."""


def begin(run: Path, steps: int = 12) -> None:
    """Write the settings of a run whose snapshots are 4, 8 and 12."""
    save_config(configuration(steps=steps, checkpoints=CHECKPOINTS), run / RUN_CONFIG)


def write_snapshot(run: Path, step: int, weight: float = 0.0) -> None:
    """Leave a whole checkpoint of a network with one weight; those before and after it stay."""
    elsewhere = run.parent / "elsewhere"
    saved = save_state(elsewhere, step, {"x": torch.full((1,), step + weight)}, configuration(steps=12), class_set())
    checkpoint_folder(run, step).parent.mkdir(parents=True, exist_ok=True)
    saved.rename(checkpoint_folder(run, step))


def weights_of(run: Path, step: int) -> str:
    return sha256_of_file(checkpoint_folder(run, step) / "segmentation.safetensors")


class Scorer:
    """Gives a score to a snapshot, and remembers of which it was asked."""

    def __init__(self, then: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[int] = []
        self.then = then

    def __call__(self, folder: Path) -> dict[str, Any]:
        assert (folder / MANIFEST).is_file()
        step = int(folder.name.removeprefix("step-"))
        self.steps.append(step)
        self.then(step)
        return {"miou": step / 100, "miou_over": {}, "iou": dict.fromkeys(class_names(class_set()))}


def snapshots_in(kept: Path) -> dict[str, Any]:
    return json.loads(kept.read_text())["snapshots"]
