"""Curves are written where TensorBoard reads them; a continued run replaces what an interrupted one wrote."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.reporting.tensorboard import open_writer, write_scalars

CONTINUED = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 4.0), (4, 4.0), (5, 4.0)]
"""The curve of a run that wrote 1 up to step 4, and 4 when it went on after step 2."""


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(folder: Path, first_step: int, last_step: int, value: float) -> None:
    writer = open_writer(folder, steps_done=first_step - 1)
    for step in range(first_step, last_step + 1):
        write_scalars(writer, {"loss/main": value, "loss/auxiliary": 2 * value}, step)
    writer.close()


def test_every_value_has_a_curve_in_its_group(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 0.5)
    assert curves(tmp_path) == {"loss/main": [(0, 0.5), (1, 0.5)], "loss/auxiliary": [(0, 1.0), (1, 1.0)]}


def test_a_continued_run_hides_what_the_interrupted_one_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, 4, 1.0)
    write(tmp_path, 3, 5, 4.0)
    assert curves(tmp_path)["loss/main"] == CONTINUED


@pytest.mark.parametrize("behind", [3600.0, 1e9])
def test_curves_go_on_where_the_clock_was_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float
) -> None:
    now = time.time()
    for first, last, value in ((0, 4, 1.0), (3, 5, 2.0), (3, 5, 4.0)):
        write(tmp_path, first, last, value)
        monkeypatch.setattr(time, "time", lambda: now - behind)
    assert curves(tmp_path)["loss/main"] == CONTINUED


def test_values_can_be_seen_before_the_writer_is_closed(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, None)
    write_scalars(writer, {"loss/main": 0.5}, 7)
    assert curves(tmp_path) == {"loss/main": [(7, 0.5)]}
    writer.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from esl_dist.command_line import run_program
from esl_dist.config import Evaluate
from esl_dist.reporting.tensorboard import open_writer, write_scalars

def main(config):
    writer = open_writer(Path(config.experiments), None)
    for step in range(1000):
        write_scalars(writer, {"loss/main": 0.5}, step)

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
run_program(Evaluate, main)
"""


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    words = [f"experiments={tmp_path}", "data.path=x"]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *words], capture_output=True, text=True, check=False)
    [file] = tmp_path.iterdir()
    assert (done.returncode, done.stderr) == (2, f"error: {file}: File too large\n")
    assert len(curves(tmp_path)["loss/main"]) > 10, "what was written before stays"
