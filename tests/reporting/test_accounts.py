"""An account lists what is known; a duration is what people say."""

import pytest

from esl_dist.reporting.accounts import account, duration


def test_facts_are_aligned_and_empty_ones_left_out() -> None:
    assert account("train toy", {"source": "6 samples", "start": "", "to": "x"}) == (
        "train toy\n  source  6 samples\n  to      x"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (363, "6 min 3 s"), (3599.7, "1 h 0 min"), (7800, "2 h 10 min")],
)
def test_a_duration_is_written_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
