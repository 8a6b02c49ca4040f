"""Snapshots that are yet to come are waited for, each as long as is allowed, and named if they do not come."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_dist.errors import UserError
from esl_dist.runs import snapshots
from esl_dist.runs.checkpoints import checkpoint_folder
from esl_dist.runs.snapshots import score_snapshots
from tests.runs.snapshot_runs import LONG, MADE_WITH, Scorer, begin, snapshots_in, write_snapshot

pytestmark = pytest.mark.usefixtures("look_often")


class Looks:
    """Tells another thread whether what is looked for was missed, and when it was found."""

    def __init__(self, plain: Callable[[list[bool]], list[bool]]) -> None:
        self.plain, self.missed, self.found = plain, threading.Event(), threading.Event()

    def __call__(self, flags: list[bool]) -> list[bool]:
        if len(flags) == 1:
            # No look for a file, but a question.
            return self.plain(flags)
        if flags[0]:
            self.missed.clear()
            self.found.set()
        else:
            self.missed.set()
        return self.plain(flags)

    def write_when_missed(self, write: Callable[[], None]) -> None:
        assert self.missed.wait(60)
        self.found.clear()
        write()
        assert self.found.wait(60)


def test_a_run_and_its_snapshots_are_waited_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another thread writes each of them only when it has been looked for in vain."""
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"made_with": MADE_WITH, "snapshots": {}}))
    looks = Looks(snapshots.broadcast_flags)
    monkeypatch.setattr(snapshots, "broadcast_flags", looks)

    def training() -> None:
        looks.write_when_missed(lambda: begin(run))
        for step in (4, 8, 12):
            looks.write_when_missed(lambda step=step: write_snapshot(run, step))

    thread = threading.Thread(target=training)
    thread.start()
    scorer = Scorer()
    scores = score_snapshots(run, kept, MADE_WITH, LONG, scorer)
    thread.join(60)
    assert scorer.steps == list(scores) == [4, 8, 12]
    waited = [run, *(checkpoint_folder(run, step) for step in (4, 8, 12))]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waiting for ")]
    assert told == [f"waiting for {path}" for path in waited], "each is named once"


def test_a_snapshot_that_does_not_come_in_time_is_named_and_the_scores_before_it_are_kept(
    run: Path, tmp_path: Path
) -> None:
    begin(run)
    write_snapshot(run, 4)
    with pytest.raises(
        UserError,
        match=r"step-00000008: not written within 0\.0005 minutes; is the training still running\? "
        r"Scores of the snapshots before it are kept",
    ):
        score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 0.0005, Scorer())
    assert list(snapshots_in(tmp_path / "kept.json")) == ["4"]


def test_every_snapshot_may_take_the_whole_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock starts anew for each: three that each take two of three minutes are waited for."""
    begin(run)
    now = [0.0]
    due = {4: 120.0, 8: 240.0, 12: 360.0}

    def minute_later(_: float) -> None:
        now[0] += 60
        for step, time in due.items():
            if now[0] >= time and not checkpoint_folder(run, step).exists():
                write_snapshot(run, step)

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        sleep = staticmethod(minute_later)

    monkeypatch.setattr(snapshots, "time", Clock)
    scorer = Scorer()
    score_snapshots(run, tmp_path / "kept.json", MADE_WITH, 3, scorer)
    assert scorer.steps == [4, 8, 12]
    assert now[0] == 360
