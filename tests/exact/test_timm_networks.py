"""Neither ranks nor restarts show in what a backbone of timm learns: those with batch norm, and a transformer."""

from pathlib import Path

import pytest

from tests.exact.trainings import (
    assert_equal_to_rounding,
    different_bits,
    everything_learned,
    run_in,
    train,
    train_in_float64,
)
from tests.grids import grid
from tests.on_ranks import RankServer

pytestmark = pytest.mark.exact

PLAIN = ("network.auxiliary_head=false", "network.batch_norm=shared", "method.name=self_training")
NETWORKS = {
    # Depthwise convolutions, squeeze and excitation, linear bottlenecks.
    "test_efficientnet": ("method.name=minent",),
    "mobilenetv2_100": ("method.name=minent",),
    "test_resnet": ("method.name=minent", "network.normalise_over=picture"),
    "test_convnext": ("network.batch_norm=shared", "method.name=minent"),
    "test_vit": PLAIN,
}
"""Backbones, with settings; batch norm is per domain where there is any."""
AS_EMBEDDED = ("source.size=[150,150]", "target.size=[150,150]")
"""Sizes at which position embeddings are taken as they are: timm resamples them in float32, whatever they are in."""
CANCELLED = 1e-13
"""Of what is mathematically 0: shifts behind linear bottlenecks, and means of what such channels are mixed to.

A shift there adds a constant, which the next convolution of 1×1 makes another constant of, and the batch norm behind
takes away (`tests/models/test_timm_networks.py` shows it): all that its gradient and the means hold is rounding.
"""


@pytest.mark.parametrize("name", grid(sorted(NETWORKS), stay=["test_efficientnet"]))
def test_neither_ranks_nor_restarts_on_others_show(server: RankServer, town: Path, tmp_path: Path, name: str) -> None:
    words = (f"network.architecture=timm/{name}", *NETWORKS[name], *(AS_EMBEDDED if name == "test_vit" else ()))
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    train_in_float64(server, town, whole, 1, *words, "steps=2")
    train_in_float64(server, town, cut, 2, *words, "steps=1")
    train_in_float64(server, town, cut, 1, *words, "steps=2")
    found, expected = everything_learned(cut), everything_learned(whole)
    assert_equal_to_rounding(found, expected, absolute=CANCELLED)
    again = everything_learned(whole, 1)
    backbone = [name for name in expected if name.startswith("/segmentation/backbone.") and name.endswith("weight")]
    assert backbone
    assert [name for name in backbone if bool((again[name] == expected[name]).all())] == []


@pytest.mark.parametrize("name", grid(sorted(NETWORKS), stay=[]))
def test_stopped_and_started_again_it_ends_with_the_same_bits(
    server: RankServer, town: Path, tmp_path: Path, name: str
) -> None:
    words = (f"network.architecture=timm/{name}", *NETWORKS[name], "optimizer.kind=adamw")
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    train(server, town, whole, 1, *words, "steps=2")
    train(server, town, cut, 1, *words, "steps=1")
    train(server, town, cut, 1, *words, "steps=2")
    found = everything_learned(cut)
    assert any("exp_avg" in key for key in found)
    assert different_bits(found, everything_learned(whole)) == []
