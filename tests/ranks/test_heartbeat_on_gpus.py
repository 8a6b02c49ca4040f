"""What a rank can tell on a GPU, where any line may wait for others, and where nothing but an alarm tells of a kill."""

import threading
import time
from types import SimpleNamespace

import pytest

from esl_dist.command_line import EXIT_LOST_RANK
from esl_dist.errors import UserError
from esl_dist.ranks import heartbeat
from esl_dist.ranks.heartbeat import Heartbeat, Progress
from tests.ranks.notes import BEAT, LONG, SILENT, SOON, Join, gone_store, kill, wait_for


def on_gpu(one: Heartbeat, *alarms: str) -> Heartbeat:
    one.progress.is_on_gpu = True
    one.progress.alarms = [lambda alarm=alarm: alarm for alarm in alarms]
    return one


def test_ranks_that_all_stand_still_at_one_place_end_though_nothing_marks_that_they_wait(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the GPU of one hangs: the hosts of all are at the same line, in a call of CUDA."""
    on_gpu(join(0, timeout_seconds=SOON)), on_gpu(join(1))
    wait_for(lambda: exit_codes)
    assert exit_codes == [EXIT_LOST_RANK]
    said = capsys.readouterr().err
    assert (
        "nobody gets on, and no rank can be singled out, as when a GPU of theirs hangs (nvidia-smi and dmesg " in said
    )
    assert "rank 1 (last at the start" in said


def test_one_that_is_behind_all_others_leaves_it_to_them_to_name_it(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    behind, ahead = on_gpu(join(0, timeout_seconds=SOON)), on_gpu(join(1, timeout_seconds=1.5 * SOON))
    ahead.progress.begun += 1
    wait_for(lambda: exit_codes)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error (rank 1): waited ")
    assert "rank 0 (last at the start" in said[0]
    assert said[0].endswith(" hangs")
    behind.stop()


def test_the_last_words_of_another_end_it_wherever_it_is(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpu(join(0))
    join(1).end_with(UserError("the disk is full"))
    wait_for(lambda: exit_codes)
    assert exit_codes == [EXIT_LOST_RANK]
    assert "rank 1 ended: the disk is full" in capsys.readouterr().err


def test_one_that_works_on_when_the_others_are_done_is_let_alone(
    join: Join, exit_codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    own, other = on_gpu(join(1)), on_gpu(join(0))
    wait_for(lambda: own._others[0].note)
    other.stop()
    assert slept == [heartbeat.HEARING_BEATS * BEAT], "in which the others read it"
    wait_for(lambda: own._others[0].note["is_done"])
    own._store = gone_store()
    wait_for(lambda: own._lost is not None)
    time.sleep(1.5 * SILENT)
    assert exit_codes == []


def test_a_store_that_went_before_rank_0_had_parted_ends_every_rank_by_itself(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As when rank 0, which keeps it, is killed: its neighbour alone has an alarm of its own."""
    for rank in (1, 2):
        on_gpu(join(rank, 3))._store = gone_store()
    wait_for(lambda: len(exit_codes) == 2)
    assert exit_codes == [EXIT_LOST_RANK] * 2
    said = capsys.readouterr().err
    assert said.count("the store of the ranks is lost (Connection reset), and with it rank 0 or the launcher") == 2


def test_a_rank_that_gives_up_still_writes_what_it_has_begun_to_write(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint is written: by a thread that Python itself would wait for."""
    own, _ = on_gpu(join(0, timeout_seconds=SOON)), join(1)
    written: list[bool] = []

    def write() -> None:
        own._ended.wait(20)
        time.sleep(10 * BEAT)
        written.append(True)

    was_written: list[bool] = []
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: was_written.extend(written or [False]))
    threading.Thread(target=write).start()
    wait_for(lambda: was_written)
    assert was_written == [True]


def test_one_that_works_on_and_never_comes_is_not_waited_for_without_end(
    join: Join, exit_codes: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "BACKEND_FACTOR", 2)
    own, busy = on_gpu(join(0, timeout_seconds=SOON)), join(1)
    own.progress.begun += 1

    def works() -> list[int]:
        busy.progress.worked()
        return exit_codes

    wait_for(works)
    assert "rank 1 (last at the start" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("works on, and does not come")


def test_an_alarm_ends_a_rank_by_the_name_of_the_killed_one(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, killed, _ = join(0, 3), join(1, 3), join(2, 3)
    wait_for(lambda: own._others[1].note)
    kill(killed)
    on_gpu(own, "", "Connection closed by peer")
    wait_for(lambda: exit_codes)
    assert exit_codes == [EXIT_LOST_RANK]
    said = capsys.readouterr().err
    assert "rank 1 (last at the start" in said
    assert "rank 2" not in said


def test_an_alarm_while_all_ranks_answer_is_told_as_what_it_is(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, _ = join(0), join(1)
    on_gpu(own, "NCCL reports COMM_ERROR")
    wait_for(lambda: exit_codes)
    said = capsys.readouterr().err
    assert "the ranks cannot exchange tensors, though all of them answer: NCCL reports COMM_ERROR" in said


def test_an_alarm_is_left_to_the_main_thread_where_that_asks_by_itself(join: Join, exit_codes: list[int]) -> None:
    own, _ = join(0), join(1)
    on_gpu(own, "Connection closed by peer")
    assert own.missing() is None
    time.sleep(SILENT / 2)
    assert exit_codes == []


@pytest.mark.parametrize("waits", [True, False])
def test_without_gpus_an_alarm_ends_a_rank_only_where_it_waits_for_others(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str], waits: bool
) -> None:
    """Where it does not, it hears of the loss at its next collective."""
    own, killed, _ = join(0, 3), join(1, 3), join(2, 3)
    wait_for(lambda: own._others[1].note)
    own.progress.begun, own.progress.is_in_collective = 1, waits
    kill(killed)
    own.progress.alarms = [lambda: "Connection closed by peer"]
    if waits:
        wait_for(lambda: exit_codes)
        assert "rank 1 (last at the start" in capsys.readouterr().err
    else:
        time.sleep(3 * SILENT)
    assert exit_codes == [EXIT_LOST_RANK] * waits


def test_a_connection_that_breaks_when_all_others_are_done_is_no_alarm(join: Join, exit_codes: list[int]) -> None:
    own, other = on_gpu(join(0)), join(1)
    other.stop()
    wait_for(lambda: own._others[1].note.get("is_done"))
    on_gpu(own, "Connection closed by peer")
    time.sleep(3 * SILENT)
    assert exit_codes == []


def test_one_that_says_nothing_from_the_start_on_is_named_before_a_launcher_ends_all(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is killed before anything connects the ranks but the store."""
    monkeypatch.setattr(heartbeat, "START_SECONDS", 1.5 * SILENT)
    own, killed = join(0, timeout_seconds=LONG), join(1)
    wait_for(lambda: own._others[1].note)
    own.progress.is_in_collective = True
    kill(killed)
    wait_for(lambda: exit_codes)
    assert "rank 1 (last at the start" in capsys.readouterr().err


def test_a_standard_error_that_takes_nothing_does_not_keep_a_rank(
    join: Join, exit_codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the pipe to a launcher that is stopped."""
    release = threading.Event()
    full = type("Full", (), {"write": lambda self, text: release.wait(30), "flush": lambda self: None})()
    monkeypatch.setattr(heartbeat, "WORDS_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat.sys, "stderr", full)
    own, _ = on_gpu(join(0, timeout_seconds=SOON)), join(1)
    wait_for(lambda: exit_codes)
    monkeypatch.undo()
    release.set()
    assert exit_codes == [EXIT_LOST_RANK]
    own.stop()


def test_a_wait_within_another_leaves_that_as_it_was() -> None:
    progress = Progress()
    with progress.waiting("the backward pass"):
        with progress.waiting("the sum of gradients"):
            assert (progress.place, progress.is_in_collective) == ("the sum of gradients", True)
        assert (progress.place, progress.is_in_collective) == ("the backward pass", True)
    assert (progress.begun, progress.place, progress.is_in_collective) == (2, "the backward pass", False)
