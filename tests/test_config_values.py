"""What a setting takes: one answer for each number as people write it, and an upper bound for each."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.config import Demo, Evaluate, Prepare, PseudoLabel, Train
from esl_dist.config_files import describe, load_config
from esl_dist.config_types import MOST_PIXELS
from esl_dist.config_values import (
    Bound,
    converted,
    described_bounds,
    limits,
    problem_of_bounds,
    settings_of,
    two_values,
)
from esl_dist.errors import UserError
from esl_dist.yaml_text import values_of


def read(text: str, kind: Any) -> Any:
    return converted(values_of(text, "here:"), kind, "here", "key")


SCHEMAS = (Train, PseudoLabel, Evaluate, Prepare, Demo)


def numbers(schema: type) -> Iterator[tuple[str, str]]:
    """Yield key and words of the bounds of every setting that is a number or a list of numbers."""
    for key, setting in settings_of(schema).items():
        if "int" in (kind := str(setting.kind)) or "float" in kind:
            yield key, described_bounds(setting.bounds)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_number_has_bounds_and_the_reference_says_them(schema: type) -> None:
    meanings = {key: meaning for key, _, _, meaning in describe(schema)}
    for key, bounds in numbers(schema):
        assert re.search("at most|less than", bounds), f"{key} has no upper bound"
        assert re.search("at least|more than", bounds.lower()), f"{key} has no lower bound"
        assert bounds in meanings[key]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("text", ["1" + "0" * 33, "-1e300", ".nan", "true"])
def test_no_number_takes_what_is_far_out_of_bounds_or_none(schema: type, text: str) -> None:
    required = [f"{key}=x" for key, _, default, _ in describe(schema) if default == "required"]
    for key, _ in numbers(schema):
        word = f"{key}=[{text},{text}]" if "list" in str(settings_of(schema)[key].kind) else f"{key}={text}"
        with pytest.raises(UserError, match=rf"^command line: .*{key}.*expected"):
            load_config(schema, None, [*required, word])


@pytest.mark.parametrize(
    ("text", "number"),
    [("20", 20), ("1_000", 1000), ("0x10", 16), ("'20'", 20), ("-3", -3), ("+3", 3), ("0", 0)],
)
def test_whole_numbers_are_taken_where_yaml_and_people_read_the_same(text: str, number: int) -> None:
    assert read(text, int) == number


@pytest.mark.parametrize("text", ["010", "08", "1:30", "1e3", "20.0", "true", "yes", "nan", "~", "[1]", "{a: 1}", "''"])
def test_other_spellings_of_a_whole_number_are_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match=r"^here: key: expected int, such as 20, got "):
        read(text, int)


@pytest.mark.parametrize(
    "text",
    ["٣", "'٣'", "' 5'", "'5 '", "0o17", "-0O17", "'0o17'", "'0x10'", "'0b11'", "'-0X1F'", "'\u00a05'"],
)
@pytest.mark.parametrize("kind", [int, float, bool])
def test_other_digits_blanks_and_bases_that_yaml_does_not_know_make_no_number(text: str, kind: type) -> None:
    with pytest.raises(UserError, match=rf"^here: key: expected {kind.__name__}\b.*, got "):
        read(text, kind)
    assert isinstance(read(text, Any), str)


@pytest.mark.parametrize("text", ["٣.5", "1e٣", "' 0.5'", "'1e-3 '", "' true'"])
def test_other_digits_and_blanks_make_no_fraction_and_no_truth_value(text: str) -> None:
    for kind in (float, bool):
        with pytest.raises(UserError, match=r"^here: key: expected "):
            read(text, kind)


@pytest.mark.parametrize(
    ("text", "given"),
    [("010", "010"), ("'010'", "'010'"), ("many", "many"), ("0x10", "0x10"), ("a\u200bb", "'a\\u200bb'")],
)
def test_what_is_refused_is_shown_as_it_was_written(text: str, given: str) -> None:
    with pytest.raises(UserError) as found:
        read(text, bool)
    assert str(found.value) == f"here: key: expected bool: true or false, got {given}"


def test_a_number_of_many_digits_is_refused_and_cut() -> None:
    with pytest.raises(UserError, match=r"^here: key: expected int, such as 20, got 9{100}…$"):
        read("9" * 5000, int)


def test_where_anything_may_be_meant_whole_numbers_are_numbers_and_all_else_is_text() -> None:
    text = "{a: [1, 0x10, '1', 010, 1.5, no, x, ~], b: {1: 2}}"
    assert read(text, Any) == {"a": [1, 16, "1", "010", "1.5", "no", "x", None], "b": {"1": 2}}
    for kind in (Any, dict[str, Any]):
        assert {type(name) for name in read(text, kind)} == {str}


@settings(max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**40), 10**40))
def test_numbers_as_python_writes_them_are_numbers(number: float, whole: int) -> None:
    assert read(repr(number), float) == number
    assert read(repr(whole), float) == float(whole)


@pytest.mark.parametrize("text", ["0001", "no", "1e3", "on", "0x10"])
def test_a_text_in_a_list_stays_as_it_was_written_too(text: str) -> None:
    assert read(f"[{text}]", list[str]) == [text]


@pytest.mark.parametrize(
    ("value", "bounds", "problem"),
    [
        ([4, 2], [two_values("[width, height]"), limits(at_least=1)], None),
        ([2**15, 2**14], [two_values(), MOST_PIXELS], "expected at most 268_435_456 pixels together"),
        ([4], [two_values("[width, height]"), MOST_PIXELS], "expected [width, height]"),
        ([0.5, 2.0], [limits(at_most=1)], "expected at most 1"),
        (10**7, [limits(at_most=10**6)], "expected at most 1_000_000"),
        ("a\0b", [], "it holds control characters; expected what can be printed"),
        ("\ud800", [], "it is not UTF-8; rename it"),
        ("x" * 5000, [], "it has 5000 bytes; expected at most 4095"),
        (["a", "b\n"], [], "it holds control characters; expected what can be printed"),
        (None, [two_values(), limits(at_least=1)], None),
    ],
)
def test_the_first_bound_that_does_not_hold_is_said(value: object, bounds: list[Bound], problem: str | None) -> None:
    assert problem_of_bounds(value, bounds) == problem
