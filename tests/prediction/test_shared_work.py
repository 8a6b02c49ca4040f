"""Ranks share work: each item is one rank's, and only the main rank shows how far it is."""

import pytest

from esl_dist.prediction import predictions
from esl_dist.prediction.predictions import own_part, shown


@pytest.fixture(params=[0, 1, 2])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(predictions, "rank", lambda: request.param)
    monkeypatch.setattr(predictions, "is_main", lambda: request.param == 0)
    monkeypatch.setattr(predictions, "world_size", lambda: 3)
    return int(request.param)


def test_every_item_is_the_part_of_one_rank(rank: int) -> None:
    assert own_part(range(8)) == range(rank, 8, 3)


def test_a_rank_that_is_not_the_main_one_gets_every_item_and_says_nothing(
    rank: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(predictions, "note_progress", lambda: noted.append(1))
    assert list(shown(iter("abc"), 3, "scoring")) == ["a", "b", "c"]
    assert len(noted) == 3, "the others are told that it gets on"
    printed = capsys.readouterr()
    assert ("scoring: 3/3 samples" in printed.err) == (rank == 0)
    assert printed.out == ""
    assert rank == 0 or printed.err == ""
