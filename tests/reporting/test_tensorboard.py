"""Curves are written where TensorBoard reads them; a continued run replaces what an interrupted one wrote."""

import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esl_dist.reporting.tensorboard import open_writer, write_scalars


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(folder: Path, first_step: int, last_step: int, value: float) -> None:
    writer = open_writer(folder, steps_done=first_step - 1)
    for step in range(first_step, last_step + 1):
        write_scalars(writer, "loss", {"main": value, "auxiliary": 2 * value}, step)
    writer.close()


def test_every_value_has_a_curve_in_its_group(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 0.5)
    assert curves(tmp_path) == {"loss/main": [(0, 0.5), (1, 0.5)], "loss/auxiliary": [(0, 1.0), (1, 1.0)]}


def test_a_continued_run_hides_what_the_interrupted_one_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, 4, 1.0)
    # Event files are read in the order of the second in their names.
    time.sleep(1.1)
    write(tmp_path, 3, 5, 4.0)
    expected = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 4.0), (4, 4.0), (5, 4.0)]
    assert curves(tmp_path)["loss/main"] == expected
