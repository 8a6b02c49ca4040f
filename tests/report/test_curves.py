"""Curves are read from either kind of file, and thinned without losing a peak."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_dist.errors import UserError
from esl_dist.report.curves import read_curves, thinned
from esl_dist.reporting.tensorboard import open_writer, write_scalars


def write_events(folder: Path, first: int, last: int, value: float) -> None:
    writer = open_writer(folder, steps_done=first - 1)
    for step in range(first, last + 1):
        write_scalars(writer, {"loss/main": value + step}, step)
    writer.close()


def test_event_files_are_read_without_what_a_run_that_went_on_wrote_again(tmp_path: Path) -> None:
    write_events(tmp_path, 1, 4, 0.0)
    write_events(tmp_path, 3, 5, 10.0)
    curves, origin, problems = read_curves(tmp_path)
    assert problems == []
    assert curves == {"loss/main": [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0)]}
    assert origin == str(tmp_path)


def test_the_table_goes_before_event_files(tmp_path: Path) -> None:
    write_events(tmp_path, 1, 2, 0.0)
    (tmp_path / "scalars.csv").write_text('step,tag,value\n20,loss/main,0.5\n20,"a, b",nan\n40,loss/main,0.25\n')
    curves, origin, _ = read_curves(tmp_path)
    assert curves["loss/main"] == [(20, 0.5), (40, 0.25)]
    assert thinned(curves["a, b"]) == []
    assert origin == str(tmp_path / "scalars.csv")


def test_a_value_that_a_kill_cut_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "scalars.csv").write_text("step,tag,value\n1,loss,0.5\n2,loss,0.1")
    assert read_curves(tmp_path)[0] == {"loss": [(1, 0.5)]}


@pytest.mark.parametrize("is_cut", [True, False])
def test_what_a_damaged_event_file_lost_is_said(tmp_path: Path, is_cut: bool) -> None:
    write_events(tmp_path, 1, 4, 0.0)
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-3] if is_cut else content[:-3] + bytes(byte ^ 1 for byte in content[-3:]))
    curves, _, [problem] = read_curves(tmp_path)
    assert curves == {"loss/main": [(1, 1.0), (2, 2.0), (3, 3.0)]}
    assert problem.startswith(f"{file}: the last ")


def test_a_run_without_curves_has_none(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "nowhere")[0] == {}


DAMAGED = {
    "other columns": b"step,value\n",
    "a column less": b"step,tag,value\n1,loss\n",
    "no step": b"step,tag,value\nx,loss,1\n",
    "no text": b"step,tag,value\n\xff,loss,1\n",
    "too long": b"step,tag,value\n1," + b"x" * 200_000 + b",1\n",
}


@pytest.mark.parametrize("table", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_is_named(tmp_path: Path, table: bytes) -> None:
    (tmp_path / "scalars.csv").write_bytes(table)
    with pytest.raises(UserError, match=r"scalars\.csv: "):
        read_curves(tmp_path)


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(4, 60))
def test_a_thinned_curve_keeps_ends_and_extremes_in_order(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert len(kept) <= most
    assert set(kept) <= set(points)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    if len(points) <= most:
        assert kept == points
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert max(value for _, value in kept) == max(values)
        assert min(value for _, value in kept) == min(values)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(4, 60))
def test_a_single_peak_and_a_single_dip_are_seen_among_many_equal_values(peak: int, dip: int, most: int) -> None:
    values = [0.0] * 1000
    values[peak], values[dip] = 1.0, -1.0
    kept = dict(thinned(list(enumerate(values)), most))
    assert kept[dip] == -1.0
    assert kept[peak] == values[peak]
    assert len(kept) <= most
