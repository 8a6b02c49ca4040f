"""Reading is compared between sides that give the same pixels; where they do not, there is no row."""

from contextlib import nullcontext

import numpy as np
import pytest

from benchmarks import loading
from esl_dist.data import packing


@pytest.fixture(autouse=True)
def _no_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "worker_processes", lambda _: nullcontext(map))


def test_every_row_has_both_sides_and_their_ratio_or_says_that_it_is_not_measured() -> None:
    found = loading.rows(quick=True)
    assert len({row.name for row in found}) == len(found) == 7
    for row in found:
        if "not measured" in row.name:
            assert (row.ours, row.plain, row.ratio) == (None, None, None)
        else:
            assert row.ratio == row.plain / row.ours > 0


def test_other_pixels_give_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MEAN_COLOR", (104.0, 117.0, 123.0))
    with pytest.raises(loading.UnequalError, match="picture 0, packed at that size as PNG: ours and the plain one"):
        loading.rows(quick=True)


def test_without_streaming_its_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    found = loading.rows(quick=True)
    assert [row.ratio for row in found if "MosaicML" in row.name] == [None, None]
    assert sum("mosaicml-streaming is not installed" in row.name for row in found) == 2


def test_drawn_pairs_are_the_same_for_the_same_seed_and_compress_like_photographs() -> None:
    picture, label = loading.drawn_pair(3, (192, 108))
    np.testing.assert_array_equal(loading.drawn_pair(3, (192, 108))[0], picture)
    assert not np.array_equal(loading.drawn_pair(4, (192, 108))[0], picture)
    assert (picture.shape, label.shape, label.dtype) == ((108, 192, 3), (108, 192), np.uint8)
