"""Rare classes are drawn as DAFormer's formula says, and pictures among those that show enough of them."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.class_counts import FILE_NAME, count_ids, pixels_of_classes, read_counts, write_counts
from esl_dist.data.rare_classes import class_probabilities, rare_class_order, rare_classes
from esl_dist.data.sampling import DrawKey
from esl_dist.data.shard_index import INDEX_NAME, read_index
from esl_dist.errors import UserError
from tests.builders import class_set, draw, drawn_shards

LIMITS = settings(max_examples=60, deadline=None)
PIXELS = np.array([[9000, 10, 0], [8000, 3001, 0], [7000, 4000, 3000], [3000, 0, 1]])
"""Of three classes in four labels; with a least number of 3000 the last class has no picture."""


@LIMITS
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=19).filter(any), st.floats(0.005, 10))
def test_probabilities_are_those_of_the_formula(pixels: list[int], temperature: float) -> None:
    found = class_probabilities(np.array(pixels), temperature, np.ones(len(pixels), bool))
    total = sum(pixels)
    logs = [(1 - one / total) / temperature for one in pixels]
    normaliser = math.fsum(math.exp(one) for one in logs)
    np.testing.assert_allclose(found, [math.exp(one) / normaliser for one in logs], rtol=1e-9)


def test_a_class_without_a_picture_is_left_out_and_the_others_share_its_part() -> None:
    rare = rare_classes(PIXELS, 0.5, 3000)
    assert [one.tolist() for one in rare.positions] == [[0, 1, 2], [1, 2], []]
    assert rare.left_out() == [2]
    shares = np.array([27000, 7011]) / PIXELS.sum()
    weights = np.exp((1 - shares) / 0.5)
    np.testing.assert_allclose(rare.probabilities, [*(weights / weights.sum()), 0], rtol=1e-12)


def test_at_a_temperature_near_zero_the_rarest_class_with_a_picture_comes_always() -> None:
    assert rare_classes(PIXELS, 1e-6, 3000).probabilities.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="no sample has more than 9000 pixels of any class"):
        rare_classes(PIXELS, 1e-6, 9000)


def test_classes_and_pictures_come_as_often_as_they_should() -> None:
    rare = rare_classes(PIXELS, 0.5, 3000)
    drawn = list(islice(rare_class_order(rare, 1, 0, 0), 6000))
    for train_id, shown in enumerate(rare.positions):
        of_class = [one.position for one in drawn if one.train_id == train_id]
        assert len(of_class) == pytest.approx(6000 * rare.probabilities[train_id], abs=160)
        for position in shown:
            assert of_class.count(position) == pytest.approx(len(of_class) / len(shown), abs=140)
        assert set(of_class) <= set(shown.tolist())


@LIMITS
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**45))
def test_the_order_goes_on_anywhere_with_the_same_samples(seed: int, first: int) -> None:
    rare = rare_classes(PIXELS, 0.5, 3000)
    whole = list(islice(rare_class_order(rare, seed, 0, first), 9))
    assert list(islice(rare_class_order(rare, seed, 0, first + 4), 5)) == whole[4:]
    assert [one.key for one in whole] == [DrawKey(seed, 0, first + number) for number in range(9)]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pixels_are_counted_by_raw_id_and_summed_by_class(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esl_dist.data.class_counts.PIXELS_AT_ONCE", 30)
    labels = [draw(seed)[1].astype(kind) for seed in range(3)]
    counts = [count_ids(label) for label in labels]
    for label, found in zip(labels, counts, strict=True):
        assert found == {one: int((label == one).sum()) for one in sorted(set(label.ravel().tolist()))}
    expected = [[(label == 7).sum(), np.isin(label, [11, 12]).sum(), (label == 23).sum()] for label in labels]
    np.testing.assert_array_equal(pixels_of_classes(counts, class_set()), expected)


def test_kept_counts_are_those_of_their_shards_alone(tmp_path: Path) -> None:
    shards, other = drawn_shards(tmp_path / "a", 3), drawn_shards(tmp_path / "b", 4)
    counts = [count_ids(draw(seed)[1]) for seed in range(3)]
    file = tmp_path / "a" / FILE_NAME
    assert read_counts(shards, file) is None
    write_counts(shards, counts, file)
    assert read_counts(shards, file) == counts
    assert read_counts(other, file) is None
    file.write_text(file.read_text().replace("[0,", "[-1,").replace("[0, ", "[-1, "))
    with pytest.raises(UserError, match=r"class_counts\.json: label_pixels\.scene_000.*delete it to have the labels"):
        read_counts(shards, file)


def test_an_index_without_counts_stays_readable(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 2)
    assert "label_pixels" not in (tmp_path / INDEX_NAME).read_text()
    assert read_index(tmp_path).label_pixels is None
