"""A terminal shows a bar; what is no terminal gets few plain lines; both give every item."""

import sys
from collections.abc import Iterator

import pytest

from esl_dist.reporting import progress as progress_module
from esl_dist.reporting.progress import (
    SECONDS_BETWEEN_LINES,
    Entry,
    entry_line,
    progress,
    show_entry,
    steps_bar,
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("terminal")
def test_a_bar_gives_every_item_and_says_of_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), 3, "scoring", unit="picture")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    for part in ("scoring", "3/3", "picture", "\r"):
        assert part in captured.err
    assert captured.out == "", "standard output belongs to results"


def test_where_there_is_no_terminal_lines_say_how_far_it_is_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    def slow() -> Iterator[int]:
        for number in range(10):
            clock[0] += 4
            yield number

    assert SECONDS_BETWEEN_LINES == 10
    assert list(progress(slow(), 10, "scoring", unit="picture")) == list(range(10))
    assert capsys.readouterr() == (
        "",
        "scoring: 0/10 pictures (0 %)\n"
        "scoring: 2/10 pictures (20 %), 0.167 pictures/s, 48 s left\n"
        "scoring: 5/10 pictures (50 %), 0.208 pictures/s, 24 s left\n"
        "scoring: 8/10 pictures (80 %), 0.222 pictures/s, 9 s left\n"
        "scoring: 10/10 pictures (100 %), took 40 s\n",
    )


def test_a_first_item_that_takes_long_has_no_speed_that_could_be_foretold(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    def late() -> Iterator[int]:
        clock[0] += 30
        yield 0

    list(progress(late(), 1, "scoring"))
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 0/1 samples (0 %)",
        "scoring: 0/1 samples (0 %), 0 samples/s",
        "scoring: 1/1 samples (100 %), took 30 s",
    ]


def test_a_quick_loop_leaves_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(1 for _ in progress(range(20_000), 20_000, "reading")) == 20_000
    assert capsys.readouterr().err.count("\n") == 2


def test_fewer_items_than_were_expected_are_not_told_as_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), 5, "counting", "frame")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("counting: 3/5 frames (60 %), took ")


def test_a_loop_that_is_left_does_not_call_itself_done(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(3), 3, "reading"):
        break
    assert capsys.readouterr().err == "reading: 0/3 samples (0 %)\n"


LOSSES = {"source_cross_entropy/main": 1.23456, "target_advent/auxiliary": 0.5}
ENTRY = Entry(step=8, losses=LOSSES, rate=2.5e-4, samples_per_second=35.21, seconds_left=63)
LINE = (
    "8/10 steps (80 %), source_cross_entropy/main 1.235, target_advent/auxiliary 0.5, learning rate 0.00025, "
    "35.2 samples/s, 1 min 3 s left"
)


def test_an_entry_says_step_losses_rate_speed_and_remaining_time() -> None:
    assert entry_line(ENTRY, 10) == LINE
    skipped = entry_line(Entry(8, {}, 1.0, 1.0, 0.0), 10)
    assert skipped.startswith("8/10 steps (80 %), no loss (every step skipped), learning rate 1")


def test_where_there_is_no_terminal_an_entry_is_a_line_and_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = steps_bar(7, 10, "training")
    assert next(iter(bar)) == 7
    show_entry(bar, ENTRY, "r", 10)
    bar.close()
    assert capsys.readouterr() == ("", f"r: {LINE}\n")


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_a_bar_begins_at_the_step_of_a_continued_run_and_shows_the_losses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = steps_bar(7, 10, "training")
    for step in bar:
        if step == 8:
            show_entry(bar, ENTRY, "r", 10)
    errors = capsys.readouterr().err
    assert "7/10" in errors
    assert "10/10" in errors
    assert "0/10" not in errors.replace("10/10", "")
    assert "source_cross_entropy 1.235" in errors
    assert f"rate {ENTRY.rate:.3g}" in errors
    assert "samples/s" not in errors
