"""Ranks of one launcher say one message once, and leave it where the launcher looks for it."""

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from esl_dist import command_line
from esl_dist.command_line import AS_ANOTHER, is_mine_to_say, run_program
from esl_dist.config import Demo
from esl_dist.environment import LOCAL_RANK
from esl_dist.errors import LostRankError, StoppedError


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LOCAL_RANK, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(command_line, "WAIT_SECONDS", 0.05)


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    for rank in range(3):
        (tmp_path / "attempt_0" / str(rank)).mkdir(parents=True)
    return tmp_path / "attempt_0"


def says(monkeypatch: pytest.MonkeyPatch, attempt: Path, rank: int, text: str) -> bool:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(attempt / str(rank) / "error.json"))
    return is_mine_to_say(text)


def told(attempt: Path, rank: int) -> str:
    """Return what the launcher's summary says of a rank, read as torchrun reads it."""
    failure = ProcessFailure(rank, 1, 2, str(attempt / str(rank) / "error.json"))
    assert isinstance(failure.message, dict)
    return str(failure.message["message"])


def test_one_message_of_several_ranks_is_said_once(monkeypatch: pytest.MonkeyPatch, attempt: Path) -> None:
    assert [says(monkeypatch, attempt, rank, "wrong") for rank in (0, 1, 2)] == [True, False, False]
    assert [told(attempt, rank) for rank in (0, 1, 2)] == ["wrong", AS_ANOTHER, AS_ANOTHER]


def test_a_message_that_the_first_rank_does_not_have_is_said_by_another(
    monkeypatch: pytest.MonkeyPatch, attempt: Path
) -> None:
    assert says(monkeypatch, attempt, 0, "wrong")
    assert says(monkeypatch, attempt, 2, "a sample is corrupt \udcff")
    assert not says(monkeypatch, attempt, 1, "a sample is corrupt \udcff")
    assert told(attempt, 2) == "a sample is corrupt \udcff"


def test_a_later_attempt_says_it_again(monkeypatch: pytest.MonkeyPatch, attempt: Path) -> None:
    assert says(monkeypatch, attempt, 0, "wrong")
    (again := attempt.with_name("attempt_1") / "0").mkdir(parents=True)
    assert says(monkeypatch, again.parent, 0, "wrong")


@pytest.mark.parametrize("file", [None, "", "/nowhere/attempt_0/0/error.json", "/dev/null"])
def test_without_a_launchers_folder_each_says_it(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    if file is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert is_mine_to_say("wrong")


def test_an_error_file_that_is_there_already_stays(monkeypatch: pytest.MonkeyPatch, attempt: Path) -> None:
    (attempt / "0/error.json").write_text(json.dumps({"message": "first", "timestamp": 1}))
    assert says(monkeypatch, attempt, 0, "wrong")
    assert json.loads((attempt / "0/error.json").read_text())["message"] == "first"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LostRankError("rank 1 hangs"), "rank 1 hangs"),
        (StoppedError("r: saved at step 5"), "r: saved at step 5"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_the_launchers_summary_says_every_end(
    monkeypatch: pytest.MonkeyPatch, attempt: Path, error: Exception, words: str
) -> None:
    def main(_: Demo) -> None:
        raise error

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(attempt / "1/error.json"))
    monkeypatch.setattr("sys.argv", ["demo"])
    with pytest.raises((SystemExit, ZeroDivisionError)):
        run_program(Demo, main)
    assert told(attempt, 1) == words
