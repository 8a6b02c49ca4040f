"""A value from a file is what it is asked for as, or one message says where it stands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esl_dist.checked import Content, read_content
from esl_dist.errors import UserError


def content(value: Any) -> Content:
    return (
        Content({"shards": [{"key": value}]}, Path("index.json"), "make it again").at("shards").entries()[0].at("key")
    )


ASKED: dict[str, tuple[Callable[[Content], object], list[Any], list[Any]]] = {
    "whole number": (Content.whole_number, [0, 7, 2**63 - 1], [True, 1.0, "1", None, -1, 2**63, [1], float("nan")]),
    "in a range": (lambda one: one.whole_number(1, 3), [1, 3], [0, 4]),
    "whole numbers": (lambda one: one.whole_numbers(2), [[0, 1]], [[0], [0, 1, 2], [0, True], [0, -1], [0, 0.5], "01"]),
    "number": (
        Content.number,
        [0, -1.5, 1e300],
        [True, "1", None, float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)],
    ),
    "share": (lambda one: one.number(0, 1), [0, 1, 0.5], [-0.1, 1.1, float("nan")]),
    "truth": (Content.truth, [True, False], [0, 1, "true", None]),
    "label": (Content.label, ["a/b", "ä", ".."], ["", "a\nb", "\ud800", "x" * 256, 3, None, ["a"]]),
    "name": (Content.name, ["a", "ä 1"], ["", ".", "..", "a/b", "/a", "a\0b", "x" * 256, 3, None]),
    "key": (Content.sample_key, ["a", "a/b"], ["", "/a", "a/", "a//b", "../a", "a/../../b", "a\0b", "x" * 300, 3]),
    "checksum": (Content.sha256, ["0a" * 32], ["0A" * 32, "0a" * 31, "0g" * 32, "0a" * 32 + "\n", 3, None]),
    "list": (lambda one: [entry.value for entry in one.entries()], [[], [1]], [{}, "ab", None, (1,)]),
    "mapping": (
        Content.mapping,
        [{}, {"a": 1}],
        [[], "ab", None, {"": 1}, {"a\nb": 1}, {3: 1}, {"\ud800": 1}, {"a\u202eb": 1}],
    ),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, asked in ASKED.items() for value in asked[1]])
def test_what_fits_is_returned(name: str, value: Any) -> None:
    assert ASKED[name][0](content(value)) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, asked in ASKED.items() for value in asked[2]])
def test_what_does_not_fit_is_refused_with_its_place_and_what_to_do(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=r"^index\.json: shards\[0\]\.key.*; make it again$") as refused:
        ASKED[name][0](content(value))
    assert len(str(refused.value).splitlines()) == 1
    str(refused.value).encode()


def test_a_key_that_must_be_there_is_named_and_another_may_be_missing() -> None:
    one = content({"a": 1})
    with pytest.raises(UserError, match=r"^index\.json: shards\[0\]\.key: no 'b'; make it again$"):
        one.at("b")
    assert one.get("b") is None
    assert content(None).get("b") is None
    assert one.at("a").value == 1
    with pytest.raises(UserError, match=r"shards\[0\]\.key: expected a mapping, got 3"):
        content(3).at("a")


@pytest.mark.parametrize(
    "value", [{"a": [1] * 1000}, [[1] * 1000], "x" * 1000, list(range(1000)), object(), [10**5000]]
)
def test_a_message_shows_no_more_than_a_line_of_what_it_found(value: Any) -> None:
    with pytest.raises(UserError) as refused:
        content(value).whole_number()
    assert len(str(refused.value)) < 250


def test_a_file_is_read_with_its_own_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 3}')
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/a.json: a: expected text, got 3; delete it")):
        read_content(tmp_path / "a.json", "delete it").at("a").text()
