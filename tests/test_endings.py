"""What is noted of an end, where several ranks and starts write one file."""

import json
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from esl_dist import endings
from esl_dist.endings import PROGRAM, STATE_FILE, Ending, begin, ending, note_end, note_end_soon, own_rank, read_state
from esl_dist.errors import LostRankError, UserError

PROJECT = Path(__file__).resolve().parent.parent

DONE = Ending("finished", 0, "")
MISTAKE, DEFECT = Ending("failed", 2, "a sample is corrupt"), Ending("failed", 1, "by zero", "ZeroDivisionError")
SIGNAL_OF_TORCHRUN = Ending("stopped", 3, "stopped by SIGTERM, which torchrun sends")
LOSS, STOP = Ending("failed", 3, "rank 1 does not answer"), Ending("stopped", 75, "saved at step 5")
STARTS = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
RUNNING = Ending("running", 0, "")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "SLURM_PROCID", *STARTS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(STATE_FILE, str(tmp_path / "new" / "state.json"))
    begin()
    return tmp_path / "new" / "state.json"


@pytest.mark.parametrize(
    ("first", "then", "left"),
    [
        (LOSS, MISTAKE, MISTAKE),
        (MISTAKE, LOSS, MISTAKE),
        (LOSS, STOP, STOP),
        (STOP, MISTAKE, STOP),
        (DEFECT, MISTAKE, DEFECT),
        (LOSS, DONE, DONE),
        (STOP, DONE, DONE),
        (DONE, STOP, DONE),
        (DONE, LOSS, DONE),
        (SIGNAL_OF_TORCHRUN, LOSS, LOSS),
        (LOSS, SIGNAL_OF_TORCHRUN, LOSS),
        (SIGNAL_OF_TORCHRUN, MISTAKE, MISTAKE),
        (SIGNAL_OF_TORCHRUN, DONE, DONE),
    ],
)
def test_what_tells_more_is_left_in_either_order(file: Path, first: Ending, then: Ending, left: Ending) -> None:
    for end in (first, then):
        note_end(end._replace(rank=0))
    noted = read_state(file)
    assert (noted.state, noted.exit_code, noted.words) == (left.state, left.code, left.line())


def test_the_end_of_an_earlier_start_is_not_taken_for_that_of_this_one(file: Path) -> None:
    note_end(DONE)
    PROGRAM.began += timedelta(seconds=60)
    # Of a rank that fails before the first has noted that the program runs.
    note_end(MISTAKE._replace(rank=3))
    assert (read_state(file).state, read_state(file).rank) == ("failed", 3)


def test_a_rank_that_failed_before_the_first_began_is_not_forgotten(file: Path) -> None:
    note_end(MISTAKE._replace(rank=1))
    endings._note_state(RUNNING._replace(rank=0))
    assert (read_state(file).state, read_state(file).rank) == ("failed", 1)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, seconds: float, **variables: str) -> None:
    """Go on as another process, that begins so much later."""
    for name, text in {**variables, "RANK": str(rank)}.items():
        monkeypatch.setenv(name, text)
    PROGRAM.began += timedelta(seconds=seconds)


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("variables", [STEP, {"TORCHELASTIC_RUN_ID": "a"}, {**STEP, "TORCHELASTIC_RUN_ID": "none"}])
def test_a_mistake_stays_though_the_ranks_of_one_start_begin_long_after_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    as_rank(monkeypatch, 1, 0, **variables)
    note_end(MISTAKE)
    as_rank(monkeypatch, 0, 60)
    endings._note_state(RUNNING._replace(rank=0))
    note_end(LOSS)
    as_rank(monkeypatch, 2, 60)
    note_end(LOSS)
    noted = read_state(file)
    assert (noted.exit_code, noted.rank, noted.began) == (2, 1, None)


@pytest.mark.parametrize("again", [{"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "8"}])
def test_a_mistake_of_another_start_is_forgotten_whatever_its_clock_said(
    file: Path, monkeypatch: pytest.MonkeyPatch, again: dict[str, str]
) -> None:
    as_rank(monkeypatch, 1, -60, **STEP)
    note_end(MISTAKE)
    as_rank(monkeypatch, 0, 0, **again)
    endings._note_state(RUNNING._replace(rank=0))
    assert read_state(file).state == "running"


def test_one_step_may_start_a_program_twice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 0, 0, **STEP)
    endings._note_state(RUNNING._replace(rank=0))
    note_end(DONE)
    as_rank(monkeypatch, 0, 60)
    endings._note_state(RUNNING._replace(rank=0))
    assert read_state(file).state == "running"


def test_only_the_first_rank_says_that_all_is_done(file: Path) -> None:
    note_end(DONE._replace(rank=1))
    assert read_state(file).state == "running"


def test_a_batch_script_reads_it_by_lines(file: Path) -> None:
    note_end(MISTAKE._replace(rank=1, step=120, words='no "a.tar"\n\nmore\udcff'))
    command = r"""sed -n 's/^ "exit_code": \([0-9]*\),$/\1/p' "$1"; grep -c '^ "words": "no ' "$1" """
    done = subprocess.run(["sh", "-c", command, "sh", str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1"]
    content = json.loads(file.read_text())
    keys = [
        "format",
        "format_version",
        "program",
        "state",
        "exit_code",
        "step",
        "words",
        "rank",
        "start",
        "began",
        "ended",
    ]
    assert list(content) == keys
    assert content["words"] == 'no "a.tar"'


@pytest.mark.parametrize("there", ["", "{", "[1]", '{"format": "esl-dist state", "format_version": 2}'])
def test_what_is_no_state_is_written_over(file: Path, there: str) -> None:
    file.write_text(there)
    note_end(STOP)
    assert read_state(file).state == "stopped"


def test_ranks_that_end_at_the_same_time_leave_one_whole_file(file: Path) -> None:
    note = (
        "import sys; from esl_dist import endings; number = int(sys.argv[1]);"
        "endings.note_end(endings.Ending('failed', 2, 'x' * 10000 * number, rank=number))"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", note, str(number)], cwd=PROJECT) for number in (1, 2, 3, 4)]
    assert [rank.wait(60) for rank in ranks] == [0] * 4
    noted = read_state(file)
    assert len(noted.words) == 10000 * noted.rank
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_a_disk_that_does_not_answer_holds_up_no_process_that_must_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, reached = threading.Event(), threading.Event()
    monkeypatch.setattr(endings, "NOTE_SECONDS", 30)
    monkeypatch.setattr(PROGRAM, "records", [lambda end: (reached.set(), release.wait(30))])
    note_end_soon(STOP, 0.5)
    assert reached.wait(30)
    assert endings._noting.locked(), "it still waits"
    assert read_state(file).state == "stopped", "the disk of a run's folder is another one"
    release.set()
    with endings._noting:
        pass


def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(STATE_FILE, str(tmp_path))
    begin()
    told = f"warning: {STATE_FILE}={tmp_path}: cannot be written (Is a directory); how this program ends is not noted"
    assert capfd.readouterr().err.startswith(told)


def test_an_ending_that_another_rank_told_is_the_cause() -> None:
    assert endings.cause(LostRankError("rank 1 ended: wrong", MISTAKE)) == MISTAKE
    assert endings.cause(LostRankError("rank 1 hangs")).code == 3
    assert endings.cause(UserError("wrong")) == ending(UserError("wrong"))


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"SLURM_PROCID": "2"}, 2),
        ({"RANK": "0", "SLURM_PROCID": "2"}, 0),
        ({"PMI_RANK": "1"}, 1),
        ({"RANK": "abc"}, 0),
        ({"RANK": "-1"}, 0),
    ],
)
def test_the_rank_is_known_before_anything_is_checked(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int
) -> None:
    for name in (*endings.RANK, "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert own_rank() == rank
