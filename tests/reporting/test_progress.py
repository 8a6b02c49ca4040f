"""Bars give every item, begin where a continued run does, and leave logs short."""

import pytest

from esl_dist.reporting.progress import SECONDS_BETWEEN_LINES, progress, silent


def test_a_bar_gives_every_item_and_says_of_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), 3, "scoring", unit="picture")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert "scoring" in captured.err
    assert "3/3" in captured.err
    assert "picture" in captured.err
    assert captured.out == "", "standard output belongs to results"


def test_a_bar_of_a_continued_run_begins_at_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(range(7, 10), 10, "training", first=7))
    errors = capsys.readouterr().err
    assert "7/10" in errors
    assert "10/10" in errors
    assert "0/10" not in errors.replace("10/10", "")


def test_in_a_file_a_quick_loop_leaves_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert SECONDS_BETWEEN_LINES >= 5
    bar = progress(range(20_000), 20_000, "reading")
    assert bar.mininterval == SECONDS_BETWEEN_LINES
    list(bar)
    assert capsys.readouterr().err.count("\r") < 10


def test_other_ranks_give_every_item_and_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    items = range(3)
    assert list(silent(items, 3, "scoring")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
