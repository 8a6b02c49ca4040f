"""`make bench`: every part at a tiny size, results that differ are refused, and what is left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import bench, jobs, losses, packing, plain_start, plain_step, start_up, two_ranks, whole_step
from benchmarks.measure import Row, UnequalError, require_close
from tests.on_ranks import run_on_ranks, shared_server

ABSENT = Row("absent", None, None, "s", None, 1.0)
FAST, SLOW = Row("fast", 1.0, 3.0, "s", 3.0, 2.0), Row("slow", 10.0, 5.0, "pictures/s", 2.0, 4.0)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what writes parts, by name: the lines of their `rows`; results go into a folder of the test."""

    def write(**lines: str) -> None:
        folder = tmp_path / "benchmarks"
        folder.mkdir()
        for name, line in lines.items():
            (folder / f"{name}.py").write_text(
                f"import os\nfrom benchmarks.measure import Row, UnequalError\ndef rows(quick):\n    {line}\n"
            )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(bench, "PARTS", tuple(lines))
        monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    return write


def test_rows_are_left_in_a_list_and_goals_that_are_not_met_are_shown(
    parts: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts(part_a=f"return [{FAST}]", part_b=f"return [{SLOW}, {ABSENT}]")
    assert bench.main([]) == 0
    written = json.loads((tmp_path / "results.json").read_text())
    assert [sorted(row) for row in written] == [sorted(["name", "ours", "plain", "unit", "ratio", "goal"])] * 3
    assert [Row(**row) for row in written] == [FAST, SLOW, ABSENT]
    table = capsys.readouterr().out
    assert "| fast | 1 | 3 | s | 3 | ≥ 2 |" in table
    assert "| slow | 10 | 5 | pictures/s | 2 | ≥ 4: not met |" in table
    assert "| absent |  |  | s |  | ≥ 1: not measured |" in table


def test_a_part_whose_results_differ_or_that_dies_fails_and_the_others_go_on(
    parts: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts(part_a="raise UnequalError('sums differ')", part_b="os._exit(9)", part_c=f"return [{FAST}]")
    assert bench.main([]) == 1
    printed = capsys.readouterr().out
    assert "part_a failed: UnequalError: sums differ" in printed
    assert "part_b failed: BrokenProcessPool" in printed
    assert "| fast |" in printed
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("words", [["part_a"], ["--quick"]])
def test_some_parts_or_tiny_sizes_leave_no_results(
    words: list[str], parts: Callable[..., None], tmp_path: Path
) -> None:
    parts(part_a=f"return [{FAST}]")
    assert bench.main(words) == 0
    assert not (tmp_path / "results.json").exists()


def test_an_unknown_part_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["speed"])
    assert ended.value.code == 2
    assert "there is no part 'speed'; name some of jobs" in capsys.readouterr().err


@pytest.mark.parametrize("part", [jobs, losses, whole_step])
def test_a_part_measures_both_sides(part: ModuleType) -> None:
    rows = part.rows(True)
    assert len(rows) == 2
    for row in rows:
        assert row.ours > 0 < row.plain
        assert row.ratio == pytest.approx(row.plain / row.ours)


@pytest.mark.grid
@pytest.mark.parametrize("part", [packing, start_up, two_ranks])
def test_a_part_that_starts_processes_measures_both_sides(part: ModuleType) -> None:
    for row in part.rows(True):
        assert row.ours > 0 < row.plain


def test_every_part_is_a_module_with_rows() -> None:
    for part in bench.PARTS:
        assert callable(__import__(f"benchmarks.{part}", fromlist=["rows"]).rows)


@pytest.mark.parametrize(
    ("part", "place", "name", "value"),
    [
        (losses, plain_step, "AUXILIARY_WEIGHT", 0.1001),
        (losses, plain_step, "FOOLING_WEIGHTS", {"main": 0.001, "auxiliary": 0.00021}),
        (whole_step, plain_step, "AUXILIARY_WEIGHT", 0.1001),
        (packing, packing, "LEVEL", []),
    ],
    ids=["losses, source", "losses, target", "whole step", "packing"],
)
def test_a_part_refuses_another_result_of_the_plain_side(
    part: ModuleType, place: ModuleType, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, value)
    with pytest.raises(UnequalError):
        part.rows(True)


def test_two_ranks_learn_what_one_does() -> None:
    ours, plain = (run_on_ranks(two_ranks.learned, ranks=ranks)[0] for ranks in (2, 1))
    require_close("two ranks and one", ours, plain, two_ranks.BOUND)


def test_a_rank_tells_the_seconds_of_a_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ("SOURCE", "TARGET"):
        monkeypatch.setattr(two_ranks, size, (64, 64))
    two_ranks.main("time", "tiny", "1")
    assert json.loads(capsys.readouterr().out) > 0


def test_a_start_learns_what_the_plain_one_does_and_goes_on_at_a_later_step(tmp_path: Path) -> None:
    starts, experiments = start_up.prepared(tmp_path, samples=2), tmp_path / "experiments"
    run = start_up.run_in(experiments)

    def train(steps: int) -> None:
        _, *words = starts.words(steps, experiments)
        assert shared_server().run("launch/train.py", words, 1) == [0]

    train(1)
    plain_start.main(*starts.plain_words(tmp_path / "plain.pth"))
    start_up.require_same_first_step(run, tmp_path / "plain.pth")
    start_up.at_step_100_000(run)
    train(start_up.LONG + 1)
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == ["step-00100000", "step-00100001"]


def test_imports_are_summed_by_package() -> None:
    told = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:   1000000 |    1500000 | torch\n"
        "import time:    500000 |     500000 |   torch.nn\n"
        "import time:        10 |         10 | zlib\n"
        "warning: something else\n"
    )
    seconds = start_up.import_seconds(told)
    assert seconds == {"torch": 1.5, "zlib": 1e-5}
    assert start_up.imports_table(seconds).splitlines()[2:] == [
        "| torch | 1.50 |",
        "| 1 others | 0.00 |",
        "| all | 1.50 |",
    ]
