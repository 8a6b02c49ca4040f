"""How trainings are compared: equal ones differ by nothing, and what differs is seen."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import one_result
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise


def checkpoint(change: float = 0.0) -> Any:
    """Return a network's weights as a checkpoint has them; `change` is taken from all of the first convolution."""
    torch.manual_seed(0)
    network = DeepLab("tiny", one_result.CLASSES, auxiliary_head=False, per_domain=True)
    initialise(network)
    weights = network.state_dict()
    weights["conv1.weight"] = weights["conv1.weight"] - change
    return SimpleNamespace(networks={SEGMENTATION: weights})


def test_equal_weights_are_equal() -> None:
    assert one_result.compare(checkpoint(), checkpoint()) == (0, 0, 0, 0)


def test_a_change_shows_by_its_size_and_by_the_relus_it_turns_over() -> None:
    largest, median, others, flipped = one_result.compare(checkpoint(), checkpoint(0.01))
    first = checkpoint(0.01).networks[SEGMENTATION]["conv1.weight"]
    assert largest == pytest.approx(0.01 / float(first.abs().max()), rel=1e-3)
    assert median == others == 0, "all other tensors are the same"
    assert 0 < flipped < 0.5


def test_other_networks_are_compared_by_themselves() -> None:
    one, other = checkpoint(), checkpoint()
    for each, value in ((one, 1.0), (other, 2.0)):
        each.networks["discriminators"] = {"weight": torch.tensor([0.0, value])}
    assert one_result.compare(one, other) == (0, 0, 0.5, 0)


def test_a_weight_a_last_place_off_is_the_next_number(tmp_path: Path) -> None:
    plain, off = (one_result.Training(started, 0)._first_weights() for started in (one_result.ONE, one_result.OFF))
    changed = {name: int((plain[name] != off[name]).sum()) for name in plain if not torch.equal(plain[name], off[name])}
    assert changed == {"conv1.weight": 1}
    difference = float((off["conv1.weight"] - plain["conv1.weight"]).max())
    assert 0 < difference <= torch.finfo(torch.float32).eps * float(plain["conv1.weight"].abs().max())


def test_the_order_is_the_same_on_any_number_of_ranks() -> None:
    assert one_result.order_is_the_same(4, steps=100) == (100, True)


def test_files_of_a_folder_are_compared_by_their_bytes_without_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"1")
    (tmp_path / ".lock").write_bytes(b"2")
    assert one_result.contents(tmp_path) == {"a/b": b"1"}
