"""run.json says of every start how it was made and how it ended, and never stops a training."""

import json
import re
import subprocess
from contextlib import nullcontext
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from esl_dist.endings import STATE_FILE, Ending, read_state
from esl_dist.errors import LostRankError, StoppedError, UserError
from esl_dist.runs import run_record
from esl_dist.runs.run_record import RUN_RECORD, RunRecord, Start, _commit, read_record

CPU: Any = SimpleNamespace(device=torch.device("cpu"), precision="bf16")


def start(run: Path, first_step: int = 0, step: int = 5, error: BaseException | None = None) -> dict[str, Any]:
    """Go through a start that ends with `error`; returns what is noted of it."""
    with nullcontext() if error is None else pytest.raises(type(error)), RunRecord() as record:
        record.begin(run, CPU, first_step)
        record.step = step
        if error is not None:
            raise error
    noted: dict[str, Any] = json.loads((run / RUN_RECORD).read_text())["starts"][-1]
    return noted


def test_a_start_is_noted_with_all_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["launch/train.py", "name=r", "source.path=/a\udcff", "a=s3://k:s/1@b"])
    monkeypatch.setenv("SECRET_TOKEN", "abc123")
    noted = start(tmp_path, 3, 7)
    assert noted["command"] == ["launch/train.py", "name=r", "source.path=/a\\udcff", "a=s3://…@b"]
    assert (noted["first_step"], noted["step"], noted["state"], noted["exit_code"]) == (3, 7, "finished", 0)
    assert (noted["processes"], noted["nodes"], noted["devices"], noted["precision"]) == (1, 1, ["cpu"], "bf16")
    assert noted["versions"]["torch"] == str(torch.__version__)
    assert {"esl-dist", "python", "accelerate", "numpy"} <= noted["versions"].keys()
    assert datetime.fromisoformat(noted["began"]) <= datetime.fromisoformat(noted["ended"])
    assert "abc123" not in (tmp_path / RUN_RECORD).read_text()


@pytest.mark.parametrize(
    ("error", "state", "code", "words"),
    [
        (StoppedError("r: saved at step 5"), "stopped", 75, "r: saved at step 5"),
        (StoppedError("r: saved at step 5", interrupted=True), "interrupted", 130, "r: saved at step 5"),
        (KeyboardInterrupt(), "interrupted", 130, "KeyboardInterrupt"),
        (UserError("the disk is full\nof cats"), "failed", 2, "the disk is full"),
        (FileNotFoundError(2, "No such file", "/x"), "failed", 2, "/x: No such file"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "failed", 2, "memory is full"),
        (MemoryError(), "failed", 2, "memory is full"),
        (OSError(24, "Too many open files"), "failed", 2, "too many open files: a process may open "),
        (RuntimeError("can't start new thread"), "failed", 2, "no further thread can be started"),
        (LostRankError("rank 1 hangs"), "failed", 3, "rank 1 hangs"),
        (ZeroDivisionError("by zero"), "failed", 1, "by zero"),
    ],
)
def test_the_end_is_noted_as_the_program_tells_it(
    tmp_path: Path, error: BaseException, state: str, code: int, words: str
) -> None:
    noted = start(tmp_path, error=error)
    assert (noted["state"], noted["exit_code"], noted["step"]) == (state, code, 5)
    assert noted["words"].startswith(words)


def test_what_is_saved_when_it_begins_is_in_the_state_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that is killed as a whole notes nothing else, and a batch script wants to know whether it gets on."""
    monkeypatch.setenv(STATE_FILE, str(tmp_path / "state.json"))
    with RunRecord() as record:
        record.begin(tmp_path, CPU, 3)
        noted = read_state(tmp_path / "state.json")
    assert (noted.state, noted.step) == ("running", 3)


def test_the_end_of_the_rank_that_ended_first_is_noted_and_not_its_loss(tmp_path: Path) -> None:
    theirs = Ending("failed", 2, "a sample is corrupt", "UserError", rank=1, step=4)
    noted = start(tmp_path, error=LostRankError("rank 1 ended: a sample is corrupt", theirs))
    assert (noted["state"], noted["exit_code"], noted["step"]) == ("failed", 2, 4)
    assert noted["words"] == "rank 1 ended: a sample is corrupt"


def test_a_start_that_was_killed_is_lost_to_the_next_one_and_all_stay(tmp_path: Path) -> None:
    start(tmp_path, error=StoppedError("saved"))
    RunRecord().begin(tmp_path, CPU, 5)
    assert read_record(tmp_path / RUN_RECORD)[-1].state == "running"
    start(tmp_path, 8)
    assert [one.state for one in read_record(tmp_path / RUN_RECORD)] == ["stopped", "lost", "finished"]


def test_a_start_that_fails_before_it_begins_notes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"), RunRecord():
        raise UserError("wrong")
    assert list(tmp_path.iterdir()) == []


def whole(tmp_path: Path) -> dict[str, Any]:
    start(tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / RUN_RECORD).read_text())
    return content


OF_ANOTHER_KIND = [True, -1, 1.5, 10**30, "x", [1], {"a": 1}]


@pytest.mark.parametrize("value", OF_ANOTHER_KIND, ids=str)
@pytest.mark.parametrize("key", [item.name for item in fields(Start)])
def test_a_value_of_another_kind_is_refused_by_its_place(tmp_path: Path, key: str, value: object) -> None:
    content = whole(tmp_path)
    of_its_kind = type(value) is str and key in ("host", "precision", "commit", "words")
    content["starts"][0][key] = value
    (tmp_path / RUN_RECORD).write_text(json.dumps(content))
    refused = rf"run.json: starts\[0\]\.{key}[^,]*: expected "
    with nullcontext() if of_its_kind else pytest.raises(UserError, match=refused):
        read_record(tmp_path / RUN_RECORD)


@pytest.mark.parametrize("key", [item.name for item in fields(Start)])
def test_a_value_that_is_missing_is_refused(tmp_path: Path, key: str) -> None:
    content = whole(tmp_path)
    del content["starts"][0][key]
    (tmp_path / RUN_RECORD).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"run.json: starts\[0\]: expected .*{key}"):
        read_record(tmp_path / RUN_RECORD)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": "esl-dist run", "format_version": 1}', '{"format_version": 2}', "\xff"]
)
def test_a_damaged_record_costs_one_warning_and_is_kept_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tmp_path / RUN_RECORD).write_text(damage, encoding="latin-1")
    assert start(tmp_path)["state"] == "finished"
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / RUN_RECORD}: ")
    assert line.endswith("it is begun anew, and what was there is run.json.damaged now")
    assert (tmp_path / "run.json.damaged").read_text(encoding="latin-1") == damage


def test_a_record_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "run.json")

    monkeypatch.setattr(run_record, "write_json", full)
    with RunRecord() as record:
        record.begin(tmp_path, CPU, 0)
    assert capsys.readouterr().err.count("cannot be written (No space left on device)") == 2


def test_the_commit_of_a_checkout_says_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert _commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert _commit(tmp_path) is None, "nothing is committed yet"
    (tmp_path / "file").write_text("a")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    commit = _commit(tmp_path)
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "new").write_text("not tracked")
    assert _commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert _commit(tmp_path) == f"{commit}-dirty"
