"""YAML of a stranger is read to plain values, or refused with one message."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.errors import UserError
from esl_dist.yaml_text import MOST_VALUES, values_of


def read(text: str) -> object:
    return values_of(text, "here:")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("a: {b: [x, 'y', ~, null]}", {"a": {"b": ["x", "y", None, None]}}),
        ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("a: &x [4, 2]\nb: *x", {"a": ["4", "2"], "b": ["4", "2"]}),
        ("a: &x {c: 1, d: 2}\nb: {<<: *x, d: 3}", {"a": {"c": "1", "d": "2"}, "b": {"c": "1", "d": "3"}}),
        (
            "a: &x {c: 1}\nb: &y {d: 2}\ne: {<<: [*x, *y]}",
            {"a": {"c": "1"}, "b": {"d": "2"}, "e": {"c": "1", "d": "2"}},
        ),
        ("{a: &x {<<: {d: 1}, d: 2}}", {"a": {"d": "2"}}),
    ],
)
def test_what_settings_are_made_of_is_read(text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize("text", ["0001", "no", "1_0", "0x10", "1e3", ".5", "12:30", "1", "true", ".inf"])
def test_numbers_and_truth_values_are_text_as_they_were_written(text: str) -> None:
    assert read(text) == read(f"'{text}'") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice; expected once"),
        ("a: &x {c: 1}\nb: &y {d: 2}\ne:\n  <<: *x\n  <<: *y", r"line 5: the key '<<' stands twice; .* as <<: \[\*one"),
        ("a: {b: 1, b: 1}", "line 1: the key 'b' stands twice"),
        ("a: &x [*x]", "line 1: a reference to what it stands in"),
        ("a: &x {b: {c: *x}}", "line 1: a reference to what it stands in"),
        ("a: *x", "line 1, column 4: found undefined alias 'x'"),
        ("a: [", "line 1, column 5: "),
        ("\ta: 1", "line 1, column 1: .*cannot start any token"),
        ("a: 1\n---\nb: 1", "but found another document"),
        ("a: !!python/object/apply:os.system [x]", "line 1: a value with the tag"),
        ("a: !mine x", "line 1: a value with the tag '!mine'; expected none"),
        ("a: !!binary aGk=", "line 1: a value with the tag"),
        ("a: !!set {b}", "line 1: a value with the tag"),
        ("a: !!int 3", "line 1: a value with the tag"),
        ("a: {~: 1}", r"line 1: a key is nothing \(null\)"),
        ("[1]: 2", "found unhashable key"),
        ("a: " + "[" * 5000, "lists or groups are nested too deeply"),
        ("a: \x00", "unacceptable character #x0000"),
    ],
)
def test_anything_else_is_refused_on_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^here: cannot be read as YAML: .*{message}") as error:
        read(text)
    assert "\n" not in str(error.value)


def test_references_that_grow_are_refused_before_they_do() -> None:
    digits = len(str(MOST_VALUES))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join(f'*a{level - 1}' for _ in range(10))}]" for level in range(1, digits)]
    assert read("\n".join(lines[: digits - 3])) is not None
    with pytest.raises(UserError, match=f"more than {MOST_VALUES} values, with its references"):
        read("\n".join(lines))


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab01x.:-?&*!|>'\"%@`#,[]{}<~_e \n\t\x00\ud800"), max_size=24))
def test_no_text_gives_anything_but_values_or_one_message(text: str) -> None:
    with suppress(UserError):
        read(text)
