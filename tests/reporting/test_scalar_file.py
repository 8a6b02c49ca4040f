"""scalars.csv has every step of a run once and whole, wherever a start was cut and another one goes on."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.errors import UserError
from esl_dist.reporting.scalar_file import ScalarFile, read_scalars


def values(step: int) -> dict[str, float]:
    return {"loss/main": step / 3, 'validation_iou/a "wide, road"': 1e-30 * step}


def write(folder: Path, done: int, last: int) -> bytes:
    """Write the steps behind `done` up to the last; returns the file."""
    file = ScalarFile(folder, done)
    for step in range(done + 1, last + 1):
        file.write(values(step), step)
    file.close()
    return (folder / "scalars.csv").read_bytes()


def test_every_value_is_a_line_that_gives_it_back_to_the_bit(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    with open(tmp_path / "scalars.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["step", "tag", "value"]
    expected = [(step, tag, value) for step in (1, 2, 3) for tag, value in values(step).items()]
    assert [(int(step), tag, float(value)) for step, tag, value in lines] == expected
    assert list(read_scalars(tmp_path / "scalars.csv")) == expected


@given(cut=st.integers(0, 400), done=st.integers(0, 4))
@settings(deadline=None, max_examples=60)
def test_a_run_that_goes_on_has_each_step_once_wherever_the_start_before_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int, done: int
) -> None:
    folder = tmp_path_factory.mktemp("scalars")
    whole, least = write(folder, 0, 6), len(write(folder, 0, done))
    # What was written before the checkpoint of a step is there; what came later, as far as it got.
    (folder / "scalars.csv").write_bytes(whole[: max(cut, least)])
    assert write(folder, done, 6) == whole


def test_what_was_written_at_the_last_step_of_all_and_comes_again_is_there_once(tmp_path: Path) -> None:
    write(tmp_path, 0, 4)
    file = ScalarFile(tmp_path, 4)
    file.write({"loss/main": 7.0}, 4)
    file.write({"validation/miou": 0.5}, 4)
    file.write(values(5), 5)
    file.close()
    found = list(read_scalars(tmp_path / "scalars.csv"))
    assert [(step, value) for step, tag, value in found if tag == "loss/main"] == [
        *((step, step / 3) for step in (1, 2, 3)),
        (4, 7.0),
        (5, 5 / 3),
    ]
    assert (4, "validation/miou", 0.5) in found


@pytest.mark.parametrize("line", ["4,loss/main", "four,loss/main,1", "4,loss/main,one", "4,a,b,1", ""])
def test_a_file_of_another_kind_is_refused_with_its_line_and_stays(tmp_path: Path, line: str) -> None:
    file = tmp_path / "scalars.csv"
    file.write_text(f"step,tag,value\n3,loss/main,0.5\n{line}\n")
    with pytest.raises(UserError, match=r"scalars\.csv: line 3 is not step,tag,value in numbers; move"):
        ScalarFile(tmp_path, 3)
    assert file.read_text().endswith(f"{line}\n")
