"""A step leaves the host ahead of the device: nothing in it, nor in the loop around it, reads a value back."""

import contextlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation import passes
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.passes import Precision
from esl_dist.ranks.session import Ranks
from esl_dist.training import loop
from esl_dist.training.optimisation import Updating
from esl_dist.training.setup import Training
from esl_dist.training.step import add_gradients
from esl_dist.training.stop_request import StopRequest
from tests.adaptation.steps import build, domain_batch, micro_batch, normaliser
from tests.grids import grid
from tests.training.small_runs import configuration
from tests.training.waits import Device, NoteWaits


def waits_of_a_step(options: settings.Method, half: bool, pseudo_labels: bool = False) -> list[str]:
    """Take two steps, and return where the second waited: passes of all kinds, the update and what comes after it."""
    method = options.name
    networks = build(method, options).float()
    source, target = domain_batch(1, True), domain_batch(2, pseudo_labels)
    for batch in (source, target):
        batch["images"] = batch["images"].float()
    own = micro_batch(source, target if pseudo_labels or METHODS[method].needs_target else None)
    device = Device()
    device.add(networks.state_dict().values())
    device.add(one for batch in (source, target) for one in (batch["images"], batch["labels"]) if one is not None)
    updating = Updating(networks, METHODS[method].optimizers(networks, settings.Optimizer()), None)
    precision = Precision(lambda: torch.autocast("cpu", torch.bfloat16, enabled=half), updating.backward)
    counted = normaliser(own)
    # It lies on the host; but a number taken from it would stay in a captured step for ever.
    device.add([counted.valid_pixels])
    for step in range(2):
        device.waits.clear()
        with NoteWaits(device):
            updating.begin_step(measures=True)
            contribution = add_gradients(networks, METHODS[method], options, [own], counted, precision)
            assert updating.update("a step")
            METHODS[method].after_update(networks, step + 1, contribution.counts, options)
    return device.waits


@pytest.mark.parametrize(
    ("method", "half", "pseudo_labels"),
    grid(
        product(sorted(METHODS), [False, True], [False, True]),
        stay=[(method, number % 2 == 0, number % 4 < 2) for number, method in enumerate(sorted(METHODS))],
    ),
)
def test_a_step_reads_nothing_back_from_the_device(method: str, half: bool, pseudo_labels: bool) -> None:
    assert waits_of_a_step(settings.Method(name=method), half, pseudo_labels) == []


ALWAYS = settings.Augmentation(jitter=1.0, blur=1.0)


@pytest.mark.parametrize(
    ("host", "entropy_as"), [("self_training", "mask"), ("self_training", "weight"), ("advent", "mask")]
)
def test_neither_a_teacher_nor_its_rule_of_trust_nor_changes_of_pictures_read_anything_back(
    host: str, entropy_as: str
) -> None:
    teacher = settings.Teacher(trust="entropy", entropy_as=entropy_as)
    options = settings.Method("masked_consistency", host=host, teacher=teacher, augmentation=ALWAYS)
    assert waits_of_a_step(options, half=False) == []


def of_labelled(scores: Tensor) -> Tensor:
    return scores[scores > 0].sum()


READERS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda scores: float(scores.sum()),
    "a condition": lambda scores: bool((scores > 0).any()),
    "nonzero": lambda scores: (scores > 0).nonzero(),
    "a boolean index": of_labelled,
    "masked_select": lambda scores: scores.masked_select(scores > 0),
    "unique": lambda scores: scores.unique(),
    "a copy to the host": lambda scores: scores.sum().cpu(),
    "a list": lambda scores: scores.sum((1, 2, 3)).tolist(),
    "equal": lambda scores: torch.equal(scores, scores + 1),
    "allclose": lambda scores: torch.allclose(scores, scores + 1),
    "numbers sent to the device": lambda scores: scores.sum() * torch.tensor([1.0, 2.0], device=scores.device),
    "a tensor sent to the device": lambda scores: torch.arange(3).to(scores.device),
    "a copy into the host's memory": lambda scores: torch.empty(()).copy_(scores.sum()),
    "repeated as often as the device says": lambda scores: scores.flatten()[:3].repeat_interleave(
        (scores > 0).flatten()[:3].long()
    ),
}


@pytest.mark.parametrize("reader", sorted(READERS))
def test_whatever_waits_is_found(monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    plain = passes.cross_entropy

    def reading(scores: Tensor, *others: Any) -> Tensor:
        READERS[reader](scores.detach())
        return plain(scores, *others)

    monkeypatch.setattr(passes, "cross_entropy", reading)
    assert len(waits_of_a_step(settings.Method("source_only"), half=False)) >= 1


class _Record:
    """Stands for run.json: hears of each finished step, and then looks where the host has waited since the last."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.waits_by_step: dict[int, list[str]] = {}

    @property
    def step(self) -> int:
        return max(self.waits_by_step, default=0)

    @step.setter
    def step(self, done: int) -> None:
        self.waits_by_step[done] = list(self.device.waits)
        self.device.waits.clear()

    def begin(self, *_: object) -> None:
        pass


METHOD_SETTINGS = {
    "advent": {"discriminator_channels": 4},
    "masked_consistency": {"name": "masked_consistency", "teacher": {"trust": "entropy"}, "masks": {"block": 8}},
}


@pytest.mark.parametrize("method", sorted(METHOD_SETTINGS))
def test_between_two_entries_of_the_log_the_loop_reads_nothing_back(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    device, set_up = Device(), loop.set_up

    def noted(*arguments: Any) -> Training:
        training = set_up(*arguments)
        for network in training.state.networks.values():
            device.add(network.state_dict().values())
        return training

    monkeypatch.setattr(loop, "set_up", noted)
    places = {"source": {"path": f"{town}/source_train"}, "target": {"path": f"{town}/target_train"}}
    config = configuration(
        **places,
        method=METHOD_SETTINGS[method],
        experiments=str(tmp_path),
        batch_size=2,
        steps=6,
        log_every=6,
        pictures_every=0,
        loader={"workers": 0, "shuffle_window": 8},
    )
    record = _Record(device)
    ranks = Ranks(torch.device("cpu"), "no", contextlib.nullcontext, None, None)
    with NoteWaits(device):
        loop.train(config, ranks, StopRequest(), record)
    # After the first step the checkpoint's copy is made; the last is logged and saved.
    assert [record.waits_by_step[step] for step in (3, 4, 5)] == [[], [], []]
    assert device.waits, "the last entry of the log has to be read"
