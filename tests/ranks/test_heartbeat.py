"""What a rank can tell of others that are missing: several of them in one process, with real stores."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from esl_dist import stop_signals
from esl_dist.command_line import EXIT_LOST_RANK
from esl_dist.errors import UserError
from esl_dist.ranks import heartbeat
from esl_dist.ranks.heartbeat import _line
from tests.ranks.notes import BEAT, LONG, SOON, Join, gone_store, kill, wait_for


def test_nobody_is_missing_while_all_write(join: Join) -> None:
    own, other = join(0), join(1)
    assert own.missing() is None
    assert other.missing() is None


def test_the_last_words_of_a_rank_are_passed_on(join: Join) -> None:
    own, other = join(0), join(1)
    other.end_with(UserError("shard-000001.tar is gone"))
    assert own.missing() == "rank 1 ended: shard-000001.tar is gone"


def test_the_last_words_of_the_first_rank_count_for_what_the_others_say_follows_from_them(join: Join) -> None:
    join(1, 3).end_with(UserError("shard-000001.tar is gone"))
    join(2, 3).end_with("the connection is broken")
    assert join(0, 3).missing() == "rank 1 ended: shard-000001.tar is gone"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("layer6"), "KeyError: 'layer6'"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RuntimeError("no memory\nmany\nlines"), "RuntimeError: no memory"),
        (UserError("/data/Stra\udcdfe: no such folder"), r"/data/Stra\udcdfe: no such folder"),
    ],
)
def test_an_error_of_any_kind_is_told_in_one_line(join: Join, error: BaseException, words: str) -> None:
    own, other = join(0), join(1)
    other.end_with(error)
    assert own.missing() == f"rank 1 ended: {words}"


def test_words_are_heard_while_a_rank_computes_and_remembered_without_the_store(join: Join) -> None:
    """Rank 0 may keep the store, and does not wait for ever for a rank that does not hear."""
    own, other = join(1, 3), join(0, 3)
    other.end_with(UserError("the disk is full"))
    own._store = gone_store()
    wait_for(lambda: not own._threads[0].is_alive())
    assert own.missing() == "rank 0 ended: the disk is full"


def test_a_store_is_not_asked_any_more_when_all_have_heard(join: Join) -> None:
    """Rank 0 may keep the store and leaves then, and torch prints a page about every question without answer."""
    own, other = join(1), join(0)
    other.end_with(UserError("the disk is full"))
    wait_for(lambda: not own._threads[0].is_alive())
    own._store = gone_store()
    own.end_with("the connection is broken")
    assert own.missing() == "rank 0 ended: the disk is full"


def test_a_rank_that_writes_no_more_is_named_with_its_last_place(join: Join) -> None:
    own, other = join(0), join(1)
    with other.progress.waiting("step 7"):
        time.sleep(5 * BEAT)
    kill(other)
    found = own.missing()
    assert found is not None
    assert re.fullmatch(
        r"rank 1 \(last at step 7; .*tests/.*:\d+\) does not answer any more: killed, or stopped", found
    )


def test_a_rank_of_another_machine_and_a_store_there_may_be_lost_for_the_network(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = iter(["a (1)", "b (2)", "b (2)"])
    monkeypatch.setattr(heartbeat, "machine", lambda: next(machines))
    monkeypatch.setattr(heartbeat, "machine_of_store", lambda: "b (2)")
    own, other, neighbour = join(0, 3), join(1, 3), join(2, 3)
    wait_for(lambda: len([one for one in own._others.values() if one.note]) == 2 and neighbour._others[1].note)
    kill(other)
    network = "; or the network between a (1) and b (2) is down"
    assert network in (own.missing() or "")
    assert (neighbour.missing() or "").endswith("killed, or stopped")
    assert network in own._lost_store("no answer")
    assert neighbour._lost_store("no answer").endswith("the launcher that keeps it")


def test_a_rank_that_never_wrote_is_named(join: Join) -> None:
    assert join(0).missing() == "rank 1 (last at its start) does not answer any more: killed, or stopped"


def test_a_store_that_is_gone_is_said_to_be(join: Join) -> None:
    own = join(0)
    own._store = gone_store()
    found = own.missing()
    assert found == (
        "the store of the ranks is lost (Connection reset), and with it rank 0 or the launcher that keeps it"
    )


@pytest.fixture
def frozen() -> Iterator[object]:
    """Return a store that does not answer."""
    release = threading.Event()

    def hangs(*_: object) -> bytes:
        release.wait(30)
        return b""

    yield type("Frozen", (), {"check": hangs, "set": hangs, "get": hangs, "compare_set": hangs, "multi_get": hangs})()
    release.set()


def test_a_store_that_does_not_answer_holds_up_neither_a_question_nor_last_words(
    join: Join, frozen: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "ANSWER_SECONDS", 0.2)
    own = join(0)
    own._store = frozen
    found = own.missing()
    assert found is not None
    assert "the store of the ranks is lost (no answer)" in found
    own.end_with("the disk is full")


def test_a_store_that_does_not_answer_ends_a_rank_that_waits_after_the_timeout(
    join: Join,
    frozen: object,
    exit_codes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(heartbeat, "ANSWER_SECONDS", LONG)
    own = join(1, timeout_seconds=SOON)
    own._store = frozen
    with own.progress.waiting("the end"):
        wait_for(lambda: "the store of the ranks is lost (no answer)" in capsys.readouterr().err)
    own._told.set()
    wait_for(lambda: exit_codes)


def test_a_rank_that_writes_no_more_ends_those_that_wait_for_it_after_the_timeout(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = join(0, timeout_seconds=SOON), join(1)
    kill(other)
    with own.progress.waiting("the end"):
        wait_for(lambda: exit_codes)
    assert "does not answer any more: killed, or stopped" in capsys.readouterr().err


def test_a_rank_that_gets_on_with_its_work_is_waited_for(join: Join, exit_codes: list[int]) -> None:
    own, other = join(0, timeout_seconds=SOON), join(1)
    with own.progress.waiting("the end"):
        for _ in range(8):
            time.sleep(SOON / 2)
            other.progress.worked()
    assert exit_codes == []


def test_a_rank_that_waits_longer_than_the_timeout_ends_and_says_for_whom(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, _ = join(0, timeout_seconds=SOON), join(1)
    time.sleep(2 * SOON)
    assert exit_codes == [], "a rank that computes may take its time"
    with own.progress.waiting("step 5"):
        wait_for(lambda: exit_codes)
    assert exit_codes == [EXIT_LOST_RANK]
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error \(rank 0\): waited \d seconds \(step 5; .*:\d+\): rank 1 \(last at the start; .*:\d+\) hangs\n", said
    )


def test_a_rank_that_waits_in_a_collective_that_nobody_marked_ends_too(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in batch norm: it has begun one more than the others."""
    own, _ = join(0, timeout_seconds=SOON), join(1)
    own.progress.begun += 1
    wait_for(lambda: exit_codes)
    assert re.search(r"rank 1 \(last at the start; .*\) hangs$", capsys.readouterr().err.rstrip())


def in_torch_distributed(function: Callable[[], object]) -> None:
    """Call it as torch's collectives would: with one of their files among this thread's frames."""
    library: dict[str, Callable[[Callable[[], object]], None]] = {}
    exec(compile("def call(function): function()", "/venv/lib/site-packages/torch/distributed/x.py", "exec"), library)
    library["call"](function)


@pytest.fixture
def join_elsewhere(join: Join, monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Join as a rank whose main thread is another one, which does nothing."""
    # That thread is none that writes.
    monkeypatch.setattr(stop_signals, "WRITING_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as thread:
        yield lambda *arguments: thread.submit(join, *arguments).result()


def test_all_that_wait_in_a_collective_that_nobody_marked_end_though_the_first_has_said_its_last_words(
    join: Join, join_elsewhere: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, last, _ = join(0, 3, SOON), join(1, 3), join_elsewhere(2, 3)
    for one in (first, last):
        one.progress.begun += 1
    in_torch_distributed(lambda: wait_for(lambda: len(exit_codes) == 2))
    assert exit_codes == [EXIT_LOST_RANK] * 2
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error \(rank 0\): waited .*: rank 2 \(last at the start; .*\) hangs", said[0])
    assert re.fullmatch(r"error \(rank 1\): waited .*: rank 0 ended: waited .*: rank 2 \(.*\) hangs", said[1])


def test_where_frames_do_not_show_that_a_rank_waits_it_ends_after_the_timeout_though_another_has_said_its_last_words(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU."""
    first, last, _ = join(0, 3, SOON), join(1, 3, 2 * SOON), join(2, 3)
    for one in (first, last):
        one.progress.begun += 1
    wait_for(lambda: len(exit_codes) == 2)
    assert exit_codes == [EXIT_LOST_RANK] * 2
    assert "error (rank 1): waited " in capsys.readouterr().err


def test_ranks_that_wait_in_a_collective_that_stalls_and_that_nobody_marked_end_after_the_timeout(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = [join(rank, 3, SOON) for rank in range(3)]
    for one in ranks:
        one.progress.begun += 1
    in_torch_distributed(lambda: wait_for(lambda: len(exit_codes) == 3))
    assert exit_codes == [EXIT_LOST_RANK] * 3
    said = capsys.readouterr().err.splitlines()
    assert all("nobody gets on, and no rank can be singled out; rank " in line for line in said)


def test_a_rank_that_works_on_when_the_others_are_done_is_let_alone(join: Join, exit_codes: list[int]) -> None:
    own, other = join(0, timeout_seconds=SOON), join(1)
    for one in (own, other):
        with one.progress.waiting("the end"):
            pass
    other.stop()
    time.sleep(2 * SOON)
    own._store = gone_store()
    time.sleep(2 * SOON)
    assert exit_codes == []


def test_a_rank_ends_even_where_standard_error_cannot_be_written(
    join: Join, exit_codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat.sys, "stderr", None)
    own, _ = join(0, timeout_seconds=SOON), join(1)
    with own.progress.waiting("step 5"):
        wait_for(lambda: exit_codes)
    monkeypatch.undo()
    assert exit_codes == [EXIT_LOST_RANK]


def test_the_one_that_hangs_is_named_while_another_gets_on(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, busy, _ = join(0, 3, SOON), join(1, 3), join(2, 3)
    with own.progress.waiting("the end"):
        while not exit_codes:
            time.sleep(SOON / 4)
            busy.progress.worked()
    said = capsys.readouterr().err
    assert "rank 2 (last at the start" in said
    assert "rank 1" not in said


def test_a_rank_that_waits_at_an_earlier_place_is_named(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, equal, behind = join(0, 3, SOON), join(1, 3), join(2, 3)
    for one in (own, equal):
        with one.progress.waiting("step 1"):
            pass
    with own.progress.waiting("step 2"), equal.progress.waiting("step 2"), behind.progress.waiting("step 1"):
        wait_for(lambda: exit_codes)
    # The equal rank hears of that end, and may end by it.
    said = capsys.readouterr().err.splitlines()[0]
    assert "error (rank 0): " in said
    assert "rank 2 (last at step 1; " in said
    assert "rank 1" not in said


def test_ranks_that_wait_for_each_other_end_after_the_timeout(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = join(0, timeout_seconds=SOON), join(1)
    with own.progress.waiting("step 1"), other.progress.waiting("step 1"):
        wait_for(lambda: exit_codes)
    assert "nobody gets on, and no rank can be singled out; rank 1 (last at step 1; " in capsys.readouterr().err


def test_a_rank_that_waits_for_one_that_ended_does_not_wait_for_the_timeout(
    join: Join, exit_codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a backend does not notice that a connection is broken."""
    own, other = join(0), join(1)
    with own.progress.waiting("step 1"):
        other.end_with(UserError("the disk is full"))
        wait_for(lambda: exit_codes)
    assert "rank 1 ended: the disk is full" in capsys.readouterr().err


def test_a_job_that_was_suspended_as_a_whole_goes_on(
    join: Join, exit_codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = join(0, timeout_seconds=50.0), join(1)
    with own.progress.waiting("step 1"):
        time.sleep(5 * BEAT)
        plain = time.monotonic
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: plain() + 1000)
        time.sleep(10 * BEAT)
        monkeypatch.undo()
    assert exit_codes == []


def test_the_line_of_a_rank_is_that_of_the_program_and_not_of_a_library() -> None:
    release = threading.Event()
    thread = threading.Thread(target=lambda: in_torch_distributed(release.wait))
    thread.start()
    wait_for(lambda: "tests/" in _line(thread.ident or 0))
    line = _line(thread.ident or 0)
    release.set()
    assert re.fullmatch(r"tests/ranks/test_heartbeat.py:\d+", line)
