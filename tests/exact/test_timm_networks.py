"""Neither ranks nor restarts show in what a backbone of timm learns: one with batch norm, and a transformer."""

from pathlib import Path

import pytest

from tests.exact.trainings import assert_equal_to_rounding, everything_learned, run_in, train_in_float64
from tests.on_ranks import RankServer

pytestmark = pytest.mark.exact

PYRAMID = ("network.architecture=timm/test_resnet", "method.name=minent")
# At this size position embeddings are taken as they are: timm resamples them in float32, whatever they are in.
TRANSFORMER = (
    *("network.architecture=timm/test_vit", "network.auxiliary_head=false", "network.batch_norm=shared"),
    "method.name=minent",
    *("source.size=[150,150]", "target.size=[150,150]"),
)


@pytest.mark.parametrize("words", [PYRAMID, TRANSFORMER], ids=["pyramid", "transformer"])
def test_neither_ranks_nor_restarts_show(
    server: RankServer, town: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    whole, cut = run_in(tmp_path, "whole"), run_in(tmp_path, "cut")
    train_in_float64(server, town, whole, 1, *words, "steps=2")
    train_in_float64(server, town, cut, 2, *words, "steps=1")
    train_in_float64(server, town, cut, 1, *words, "steps=2")
    found, expected = everything_learned(cut), everything_learned(whole)
    assert any("backbone" in name and "momentum_buffer" not in name for name in expected)
    assert_equal_to_rounding(found, expected)
    again = everything_learned(whole, 1)
    backbone = [name for name in expected if name.startswith("/segmentation/backbone.") and name.endswith("weight")]
    assert [name for name in backbone if bool((again[name] == expected[name]).all())] == []
