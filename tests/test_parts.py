"""`--part K/N` divides the tests that were chosen: each is in one part, and none in two."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_collection_modifyitems


def left_of(tests: list[str], part: str | None) -> tuple[list[str], list[str]]:
    """Return what is left of tests, and what is told to be left out."""
    left: list[Any] = list(tests)
    out: list[str] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: out.extend(items))
    config: Any = SimpleNamespace(getoption={"part": part}.__getitem__, hook=hook)
    pytest_collection_modifyitems(config, left)
    return left, out


def test_the_parts_are_all_and_share_none() -> None:
    parts = [left_of([*"abcdefg"], f"{part}/3") for part in (1, 2, 3)]
    assert parts == [([*"adg"], [*"bcef"]), ([*"be"], [*"acdfg"]), ([*"cf"], [*"abdeg"])]
    assert left_of([*"abc"], None) == ([*"abc"], [])


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "one/4", "1/4/2"])
def test_an_impossible_part_is_refused(part: str) -> None:
    with pytest.raises(pytest.UsageError, match=f"--part {part}: expected K/N with K from 1 to N"):
        left_of([*"abc"], part)
