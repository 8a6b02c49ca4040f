"""A run goes on with the settings it was begun with, but for those that the documentation names."""

import copy
import json
import re
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esl_dist import config as settings
from esl_dist.config_files import describe
from esl_dist.errors import UserError
from esl_dist.ranks.session import Ranks
from esl_dist.runs.checkpoints import Checkpoint
from esl_dist.training.data import TrainingData
from esl_dist.training.setup import State, fill_from, set_up
from tests.builders import class_set
from tests.training.small_runs import configuration, tiny_network

SHARDS = {"source": "a", "target": "b"}
RUN = Path("experiments/snapshots/r")


def documented() -> set[str]:
    """Return the settings that the documentation lets change: the first column of its table."""
    page = (Path(__file__).parents[2] / "docs/running.md").read_text(encoding="utf-8")
    section = page.split("## What may change when a run goes on")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


KEYS = [key for key, *_ in describe(settings.Train)]
FIXED = [key for key in KEYS if key not in documented() | {"name"}]


def other(value: Any) -> Any:
    """Return another value of the kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}_other"
        case list():
            return [*value, 1]
        case None:
            return "other"
    raise AssertionError(f"no other value of {value!r}")


def with_other(key: str, config: settings.Train) -> settings.Train:
    changed = copy.deepcopy(config)
    *groups, last = key.split(".")
    group = reduce(getattr, groups, changed)
    setattr(group, last, other(getattr(group, last)))
    return changed


def go_on(begun: settings.Train, given: settings.Train, shards: dict[str, str] = SHARDS) -> None:
    """Fill networks from a checkpoint of a run that was begun with other settings, maybe."""
    segmentation = tiny_network(1)
    state = State(nn.ModuleDict({"segmentation": tiny_network(2)}), {})
    checkpoint = Checkpoint(1, begun, "village3", class_set(), SHARDS, {"segmentation": segmentation.state_dict()}, {})
    fill_from(RUN, checkpoint, given, TrainingData(None, None, "village3", class_set(), shards), state)
    assert torch.equal(state.networks["segmentation"].conv1.weight, segmentation.conv1.weight)


def test_the_documentation_names_settings_there_are() -> None:
    assert documented()
    assert documented() <= set(KEYS)


@pytest.mark.parametrize("key", FIXED)
def test_a_run_does_not_go_on_with_another_value_of_a_setting_that_is_not_documented_to_change(key: str) -> None:
    begun = configuration()
    given = with_other(key, begun)
    value, new = (reduce(getattr, key.split("."), config) for config in (begun, given))
    shown = f"{key}: {json.dumps(value)} → {json.dumps(new)}; give those that it was begun with"
    with pytest.raises(UserError, match=re.escape(f"{RUN}: this run was begun with other settings")) as refused:
        go_on(begun, given)
    assert shown in str(refused.value)


@pytest.mark.parametrize("key", sorted(documented()))
def test_a_run_goes_on_with_another_value_of_a_setting_that_is_documented_to_change(key: str) -> None:
    go_on(configuration(), with_other(key, configuration()))


def test_of_many_changed_settings_some_are_shown_and_the_rest_counted_each_cut_to_a_line() -> None:
    begun = configuration(class_set="c" * 200)
    given = reduce(lambda config, key: with_other(key, config), ["class_set", *FIXED[-6:]], begun)
    with pytest.raises(UserError) as refused:
        go_on(begun, given)
    assert str(refused.value).count(" → ") == 1 + 4, "and the heading"
    assert " and 3 more; give those" in str(refused.value)
    assert f'class_set: "{"c" * 59}… → "{"c" * 59}…' in str(refused.value)


def test_a_run_whose_folder_was_renamed_says_how_to_name_it_back() -> None:
    with pytest.raises(UserError, match=r"snapshots/r: holds the run before: its folder was renamed") as refused:
        go_on(configuration(name="before"), configuration(name="r"))
    assert "give it back the place experiments/snapshots/before and start it as name=before" in str(refused.value)
    assert "delete" not in str(refused.value)


def test_a_run_does_not_go_on_on_other_shards() -> None:
    with pytest.raises(UserError, match="this run was begun on other shards"):
        go_on(configuration(), configuration(), {**SHARDS, "target": "c"})


def test_compiled_passes_are_refused_with_deepspeed_before_anything_is_read() -> None:
    ranks = Ranks(torch.device("cpu"), "no", nullcontext, scaler=None, zero_stage=1)
    with pytest.raises(UserError, match=r"^compile=true is not supported with DeepSpeed"):
        set_up(configuration(compile=True), ranks)


def test_a_compiler_that_does_not_work_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object, **__: object) -> object:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", missing)
    ranks = Ranks(torch.device("cpu"), "no", nullcontext, scaler=None, zero_stage=None)
    config = configuration(compile=True, experiments=str(tmp_path), source={"path": f"{tmp_path}/nowhere"})
    with pytest.raises(UserError, match=r"^compile=true: torch's compiler does not work here"):
        set_up(config, ranks)
    assert not list(tmp_path.iterdir())
