"""Raw ids become train ids by one table; a class set that cannot be meant is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.labels import (
    IGNORE_INDEX,
    class_names,
    class_set_to,
    identity_class_set,
    train_id_table,
)
from esl_dist.errors import UserError
from tests.builders import CLASS_ENTRIES, as_classes, class_set


@st.composite
def class_sets(draw: st.DrawFn) -> list[dict]:
    """Class sets with up to 255 classes, each with any number of raw ids of its own."""
    ids = draw(st.lists(st.integers(0, 65535), unique=True, max_size=300))
    number = draw(st.one_of(st.integers(1, 20), st.just(255)))
    owners = draw(st.lists(st.integers(0, number - 1), min_size=len(ids), max_size=len(ids)))
    color = st.lists(st.integers(0, 255), min_size=3, max_size=3)
    return [
        {
            "name": f"class {position}",
            "color": draw(color) if position < 5 else [0, 0, 0],
            "ids": [raw for raw, owner in zip(ids, owners, strict=True) if owner == position],
        }
        for position in range(number)
    ]


@settings(max_examples=25, deadline=None)
@given(class_sets())
def test_the_table_gives_every_raw_id_its_class_and_ignores_the_others(entries: list[dict]) -> None:
    table = train_id_table(as_classes(entries))
    assert table.shape == (65536,)
    assert table.dtype == np.uint8
    owner = {raw: position for position, entry in enumerate(entries) for raw in entry["ids"]}
    expected = np.full(65536, IGNORE_INDEX)
    expected[list(owner)] = list(owner.values())
    np.testing.assert_array_equal(table, expected)


@settings(max_examples=25, deadline=None)
@given(class_sets())
def test_a_class_set_comes_back_from_plain_dictionaries(entries: list[dict]) -> None:
    classes = as_classes(entries)
    assert class_set_to(classes) == entries
    assert as_classes(class_set_to(classes)) == classes


def test_identity_keeps_classes_and_maps_train_ids_to_themselves() -> None:
    classes = identity_class_set(class_set())
    assert class_names(classes) == ["road", "house", "sky"]
    assert [item.color for item in classes] == [item.color for item in class_set()]
    assert train_id_table(classes)[:4].tolist() == [0, 1, 2, IGNORE_INDEX]
    assert train_id_table(classes)[IGNORE_INDEX] == IGNORE_INDEX


def entry(**changes: object) -> dict[str, object]:
    content = {"name": "x", "color": [1, 2, 3], "ids": [4], **changes}
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(name=None)], r"\[0\]: no 'name'"),
        ([entry(color=None)], r"\[0\]: no 'color'"),
        ([entry(ids=None)], r"\[0\]: no 'ids'"),
        ([entry(), "road"], r"\[1\]: expected a mapping, got 'road'"),
        ([entry(name=7)], r"\[0\]\.name: expected text, got 7"),
        ([entry(name=["x"])], r"\[0\]\.name: expected text"),
        ([entry(name="")], r"\[0\]\.name '' is impossible"),
        ([entry(name="a\nb")], r"\[0\]\.name 'a\\nb' is impossible: it holds control characters"),
        ([entry(name="\ud800")], r"\[0\]\.name .* is impossible: it is not UTF-8"),
        ([entry(name="x" * 256)], r"\[0\]\.name .* is impossible: it has 256 bytes"),
        ([entry(color="123")], r"\[0\]\.color: expected a list of 3 whole numbers, got '123'"),
        ([entry(ids="12")], r"\[0\]\.ids: expected a list"),
        ([entry(ids=[1.5])], r"\[0\]\.ids\[0\]: expected a whole number"),
        ([entry(ids=[True])], r"\[0\]\.ids\[0\]: expected a whole number"),
        ([entry(ids=7)], r"\[0\]\.ids: expected a list"),
        ([entry(color=[1, 2])], r"\[0\]\.color: expected a list of 3 whole numbers, got \[1, 2\]"),
        ([entry(color=[1, 2, 256])], r"\[0\]\.color\[2\]: .* from 0 to 255, got 256"),
        ([entry(color=[1, -2, 0])], r"\[0\]\.color\[1\]: .* from 0 to 255, got -2"),
        ([entry(ids=[65536])], r"\[0\]\.ids\[0\]: expected a whole number from 0 to 65535, got 65536"),
        ([entry(ids=[-1])], r"\[0\]\.ids\[0\]: expected a whole number from 0 to 65535, got -1"),
        ([entry(ids=[4, 4])], "raw id 4 belongs to class x and to class x"),
        ([entry(), entry(name="y", ids=[3, 4])], "raw id 4 belongs to class x and to class y"),
        ([entry(), entry(ids=[5])], "the name 'x' stands twice"),
        ([], "expected 1 to 255 classes, got"),
        ([entry(name=str(raw), ids=[raw]) for raw in range(256)], "expected 1 to 255 classes, got a list of 256"),
        ([None] * 10**5, "expected 1 to 255 classes, got a list of 100000"),
        (None, "expected a list, got None"),
        (3, "expected a list, got 3"),
        ({"name": "x"}, "expected a list, got a mapping"),
    ],
)
def test_a_wrong_class_set_is_refused_with_its_place(entries: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^here: {message}.*; correct it$"):
        as_classes(entries)


def test_255_classes_are_possible_and_leave_the_ignored_id_free() -> None:
    entries = [entry(name=str(raw), ids=[raw + 1000]) for raw in range(255)]
    table = train_id_table(as_classes(entries))
    assert table[1254] == 254
    assert table[1255] == IGNORE_INDEX


def test_the_entries_of_the_builders_are_what_the_other_tests_take_them_for() -> None:
    table = train_id_table(as_classes(CLASS_ENTRIES))
    assert table[[7, 11, 12, 23, 0]].tolist() == [0, 1, 1, 2, IGNORE_INDEX]
