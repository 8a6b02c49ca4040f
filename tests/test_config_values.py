"""What a setting takes: one answer for each number as people write it, and an upper bound for each."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.config import Demo, Evaluate, Prepare, PseudoLabel, Train
from esl_dist.config_files import describe, load_config
from esl_dist.config_values import described_bounds, problem_of_bounds, problems_of_type, typed
from esl_dist.errors import UserError
from esl_dist.yaml_text import values_of

SCHEMAS = (Train, PseudoLabel, Evaluate, Prepare, Demo)


def numbers(schema: type, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and bounds of every setting that is a number or a list of numbers."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        if is_dataclass(hints[item.name]):
            yield from numbers(hints[item.name], f"{prefix}{item.name}.")
        elif "int" in (kind := str(hints[item.name])) or "float" in kind:
            yield f"{prefix}{item.name}", dict(item.metadata)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_number_has_bounds_and_the_reference_says_them(schema: type) -> None:
    meanings = {key: meaning for key, _, _, meaning in describe(schema)}
    for key, bounds in numbers(schema):
        assert {"maximum", "below"} & bounds.keys(), f"{key} has no upper bound"
        assert {"minimum", "above"} & bounds.keys(), f"{key} has no lower bound"
        assert described_bounds(bounds) in meanings[key]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("text", ["1" + "0" * 33, "-1e300", ".nan", "true"])
def test_no_number_takes_what_is_far_out_of_bounds_or_none(schema: type, text: str) -> None:
    required = [f"{key}=x" for key, _, default, _ in describe(schema) if default == "required"]
    for key, bounds in numbers(schema):
        word = f"{key}=[{text},{text}]" if "length" in bounds or key == "ensemble_weights" else f"{key}={text}"
        with pytest.raises(UserError, match=rf"^command line: .*{key}.*expected"):
            load_config(schema, None, [*required, word])


@pytest.mark.parametrize(
    ("text", "number"),
    [("20", 20), ("1_000", 1000), ("0x10", 16), ("'20'", 20), ("-3", -3), ("+3", 3), ("0", 0)],
)
def test_whole_numbers_are_taken_where_yaml_and_people_read_the_same(text: str, number: int) -> None:
    value = values_of(text, "here:")
    assert list(problems_of_type(value, "int")) == []
    assert int(typed(value, "int")) == number


@pytest.mark.parametrize("text", ["010", "08", "1:30", "1e3", "20.0", "true", "yes", "nan", "~", "[1]", "{a: 1}", "''"])
def test_other_spellings_of_a_whole_number_are_refused_by_name(text: str) -> None:
    ((place, problem),) = problems_of_type(values_of(text, "here:"), "int")
    assert place == ""
    assert problem.startswith("expected int, such as 20, got ")


@settings(max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**40), 10**40))
def test_numbers_as_python_writes_them_are_numbers(number: float, whole: int) -> None:
    assert list(problems_of_type(values_of(repr(number), "here:"), "float")) == []
    assert list(problems_of_type(values_of(repr(whole), "here:"), "float")) == []
    assert typed(values_of(repr(number), "here:"), "float") == number


@pytest.mark.parametrize("text", ["0001", "no", "1e3", "on", "0x10"])
def test_a_text_in_a_list_stays_as_it_was_written_too(text: str) -> None:
    assert typed(values_of(f"[{text}]", "here:"), "list[str]") == [text]


@pytest.mark.parametrize(
    ("value", "bounds", "problem"),
    [
        ([4, 2], {"length": 2, "product": 8}, None),
        ([4, 3], {"length": 2, "product": 8}, "expected at most 8 pixels"),
        ([4], {"length": 2, "product": 8}, r"expected [width, height]"),
        ([0.5, 2.0], {"maximum": 1}, "expected at most 1"),
        (10**7, {"maximum": 10**6}, "expected at most 1000000"),
        ("a\0b", {}, "it holds control characters; expected a text that can be printed"),
        ("\ud800", {}, "it is not UTF-8; rename what it names"),
        ("x" * 5000, {}, "it has 5000 characters; expected at most 4096"),
        (["a", "b\n"], {}, "it holds control characters; expected a text that can be printed"),
        (None, {"minimum": 1}, None),
    ],
)
def test_the_first_bound_that_does_not_hold_is_said(value: object, bounds: dict[str, Any], problem: str | None) -> None:
    assert problem_of_bounds(value, bounds) == problem
