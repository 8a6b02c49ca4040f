"""Maps that are resized in tiles of rows are those that are resized as a whole, for any sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esl_dist.models import row_tiles
from esl_dist.models.row_tiles import highest_class, resized_rows, row_places

sides = st.tuples(st.integers(1, 9), st.integers(1, 40))


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Put the tiles together, each row once."""
    tiles = list(resized_rows(maps, size))
    assert [row for rows, _ in tiles for row in range(rows.start, rows.stop)] == list(range(size[0]))
    return torch.cat([part for _, part in tiles], 2)


def drawn(height: int, width: int, kind: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, dtype=kind, generator=torch.Generator().manual_seed(height))


@given(height=sides, width=sides)
@settings(deadline=None, max_examples=100)
def test_tiles_are_the_parts_of_bilinear_resizing_with_aligned_corners(
    height: tuple[int, int], width: tuple[int, int]
) -> None:
    """Larger, smaller, and of a single row or column."""
    maps, size = drawn(height[0], width[0]), (height[1], width[1])
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(resized(maps, size), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_no_bit_depends_on_the_tiles(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, size = drawn(7, 5, kind), (50, 33)
    whole = resized(maps, size)
    monkeypatch.setattr(row_tiles, "TILE_BYTES", 1)
    assert len(list(resized_rows(maps, size))) == 50
    assert torch.equal(resized(maps, size), whole)


def test_a_gpu_gets_all_rows_at_once() -> None:
    """Which values they have, no machine without one says."""
    [(rows, part)] = resized_rows(drawn(7, 5).to("meta"), (50, 33))
    assert (rows, part.shape, part.dtype) == (slice(0, 50), (2, 3, 50, 33), torch.float64)


def test_a_row_that_lies_on_another_has_its_values() -> None:
    above, weight = row_places(65, 513, torch.zeros(()))
    assert above[::8].tolist() == list(range(65))
    assert weight[::8].abs().max() == 0
    assert (weight < 1).all()


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 255), st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=100)
def test_the_highest_class_is_the_first_of_equal_ones(shape: tuple[int, int, int, int], seed: int) -> None:
    """Of few different scores many are equal."""
    scores = np.random.default_rng(seed).choice([-np.inf, -1.0, 0.0, 0.5], shape)
    assert highest_class(torch.from_numpy(scores)).tolist() == scores.argmax(1).tolist()


def test_scores_that_are_no_numbers_have_some_class() -> None:
    found = highest_class(torch.full((1, 19, 2, 3), torch.nan))
    assert found.shape == (1, 2, 3)
    assert ((found >= 0) & (found < 19)).all()
