"""A value from a file is what it is asked for as, or one message says where it stands."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from esl_dist.checked import (
    Content,
    Name,
    OtherVersionError,
    SampleKey,
    Share,
    one_of,
    read,
    read_content,
    read_key,
    read_label,
    read_name,
    read_sha256,
    whole_number,
)
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
    "label": (read_label, ["a/b", "ä", ".."], ["", "a\nb", "\ud800", "x" * 256, 3, None, ["a"]]),
    "name": (read_name, ["a", "ä 1"], ["", ".", "..", "a/b", "/a", "a\0b", "x" * 256, 3, None]),
    "key": (read_key, ["a", "a/b"], ["", "/a", "a/", "a//b", "../a", "a/../../b", "a\0b", "x" * 300, 3]),
    "checksum": (read_sha256, ["0a" * 32], ["0A" * 32, "0a" * 31, "0g" * 32, "0a" * 32 + "\n", 3, None]),
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


@dataclass(frozen=True)
class Part:
    """What may stand in a format, once of every kind."""

    name: Name
    side: Annotated[int, whole_number(1, 8)] = 1
    shares: dict[str, Share | None] = field(default_factory=dict)
    kind: Annotated[str, one_of("a", "b")] = "a"
    whole: bool = False


@dataclass(frozen=True)
class Format:
    """A format of parts."""

    parts: tuple[Part, ...]
    by_key: dict[SampleKey, list[float]] = field(default_factory=dict)
    anything: Any = None
    count: int = field(default=0, metadata={"key": "number"})


def as_format(value: Any) -> Format:
    return read(Content(value, Path("f.json"), "make it again"), Format)


def test_a_dataclass_is_read_from_its_keys_and_those_of_later_versions_are_passed_over() -> None:
    part = {"name": "p", "side": 8, "shares": {"road": 0.5, "sky": None}, "kind": "b", "whole": True, "later": 1}
    read_back = as_format({"parts": [part, {"name": "q"}], "by_key": {"a/b": [1, 0.5]}, "anything": [3], "number": 2})
    first = Part("p", 8, {"road": 0.5, "sky": None}, "b", True)
    assert read_back == Format((first, Part("q")), {"a/b": [1, 0.5]}, [3], 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "f.json: expected a mapping, got 3"),
        ({}, "f.json: no 'parts'"),
        ({"parts": {}}, "f.json: parts: expected a list, got a mapping of 0"),
        ({"parts": [{"name": "p"}, {}]}, "f.json: parts[1]: no 'name'"),
        ({"parts": [{"name": "../p"}]}, "f.json: parts[0].name '../p' is impossible"),
        ({"parts": [{"name": "p", "side": 9}]}, "f.json: parts[0].side: expected a whole number from 1 to 8, got 9"),
        ({"parts": [{"name": "p", "shares": {"road": 2}}]}, "f.json: parts[0].shares.road: expected a number from 0"),
        ({"parts": [{"name": "p", "shares": {"": 1}}]}, "f.json: parts[0].shares: key '' is impossible"),
        ({"parts": [{"name": "p", "shares": {3: 1}}]}, "f.json: parts[0].shares: key: expected text, got 3"),
        ({"parts": [{"name": "p", "kind": "c"}]}, "f.json: parts[0].kind: expected one of a, b, got 'c'"),
        ({"parts": [{"name": "p", "whole": 1}]}, "f.json: parts[0].whole: expected true or false, got 1"),
        ({"parts": [], "by_key": {"../a": []}}, "f.json: by_key: key '../a' is impossible"),
        ({"parts": [], "by_key": {"a": [None]}}, "f.json: by_key.a[0]: expected a finite number, got None"),
        ({"parts": [], "number": -1}, "f.json: number: expected a whole number"),
        ({"parts": [], 3: 1, "by_key": 1}, "f.json: by_key: expected a mapping, got 1"),
    ],
)
def test_what_is_no_such_dataclass_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(message)}.*; make it again$"):
        as_format(value)


def test_a_file_of_another_format_or_version_is_refused() -> None:
    def version_of(*or_else: str, **header: Any) -> int:
        return Content(header, Path("f.json"), "make it again").version_of("shards", [2, 3], *or_else)

    assert version_of(format="shards", format_version=2) == 2
    with pytest.raises(UserError, match=r"^f\.json: expected the format 'shards'; make it again$"):
        version_of(format="runs", format_version=2)
    with pytest.raises(UserError, match=r"^f\.json: no 'format_version'; make it again$"):
        version_of(format="shards")
    with pytest.raises(UserError, match=r"^f\.json: format_version: expected a whole number"):
        version_of(format="shards", format_version="2")
    told = (
        r"^f\.json: format version 4, this program reads 2 and 3; use the version of the program that wrote it, or make"
    )
    with pytest.raises(OtherVersionError, match=told):
        version_of(format="shards", format_version=4)
    with pytest.raises(OtherVersionError, match=r"that wrote it, or begin anew$"):
        version_of("begin anew", format="shards", format_version=4)
    with pytest.raises(UserError, match=r"^f\.json: expected the format 'shards'; make it again$"):
        version_of("begin anew", format="runs")


def test_what_to_do_about_damaged_json_is_for_its_reader_to_say(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text("{")
    with pytest.raises(UserError, match=r"it may be damaged: delete it to have them counted again$"):
        read_content(tmp_path / "counts.json", "delete it to have them counted again")
