"""A launcher's variables are of the right type and in range, or refused by name."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist import environment
from esl_dist.environment import Launch, choice, flag, launch, whole_number
from esl_dist.errors import UserError

VARIABLES = (*environment.RANK, *environment.WORLD_SIZE, *environment.LOCAL_RANK, *environment.LOCAL_WORLD_SIZE)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Launch:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launch()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch(0, 1, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, Launch(0, 1, 1)),
        ({"RANK": "0", "LOCAL_RANK": "-1"}, Launch(0, 1, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch(3, 4, 2)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Launch(1, 2, 1)),
        ({"PMI_RANK": "7", "RANK": "1", "WORLD_SIZE": "2", "PMI_SIZE": "8"}, Launch(1, 2, 1)),
    ],
)
def test_rank_and_world_size_are_those_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Launch
) -> None:
    assert launched(monkeypatch, **variables) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc is impossible: expected a number from 1 to 1048576; .* or unset it$"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1 is impossible: expected a number from 1 to"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is impossible"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= is impossible"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0 is impossible"),
        ({"WORLD_SIZE": "2_0"}, "WORLD_SIZE=2_0 is impossible"),
        ({"WORLD_SIZE": "٢"}, "WORLD_SIZE=٢ is impossible"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=9{100}… is impossible"),
        ({"WORLD_SIZE": "2\n"}, r"WORLD_SIZE='2\\n' is impossible"),
        ({"RANK": "x"}, "RANK=x is impossible"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK=5 is impossible: expected a number from 0 to 1;"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK=-1 is impossible"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x is impossible"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=2 is impossible: expected a number from -1 to 1;"),
        ({"RANK": "5"}, "RANK=5 is impossible: WORLD_SIZE, .* is not set; .* or unset RANK$"),
        ({"RANK": "0", "LOCAL_RANK": "1"}, "LOCAL_RANK=1 is impossible: WORLD_SIZE, .* is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "two"}, "OMPI_COMM_WORLD_SIZE=two is impossible"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        launched(monkeypatch, **variables)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))
def test_any_text_is_a_value_or_a_message(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESL_TEST", text)
        for read in (lambda: whole_number("ESL_TEST", -5, 5), lambda: flag("ESL_TEST")):
            with suppress(UserError):
                read()


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("1", True), ("Y", True), ("t", True), ("no", False), ("n", False), ("F", False), ("", False)],
)
def test_a_flag_says_yes_or_no(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("ESL_TEST", text)
    assert flag("ESL_TEST") is value


def test_what_is_not_set_asks_for_nothing() -> None:
    assert whole_number("ESL_TEST_ABSENT", 0, 1) is None
    assert flag("ESL_TEST_ABSENT") is False
    assert choice("ESL_TEST_ABSENT", ("no", "yes")) == "no"
