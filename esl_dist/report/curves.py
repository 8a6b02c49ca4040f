"""The curves of a run: of scalars.csv or, where there is none, of TensorBoard's event files."""

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.util.tensor_util import make_ndarray

from esl_dist.errors import UserError
from esl_dist.reporting.tensorboard import EVENT_FILE

SCALARS = "scalars.csv"
HEADER = ["step", "tag", "value"]
MOST_POINTS = 400
"""Of a curve, on the page."""

Points = list[tuple[int, float]]


def read_curves(logs: Path) -> tuple[dict[str, Points], str]:
    """Return the curves of a folder by tag, and which file they are of; none where there is nothing.

    Raises:
        UserError: scalars.csv is damaged.
    """
    if (file := logs / SCALARS).is_file():
        return _of_table(file), str(file)
    files = sorted(logs.glob(f"{EVENT_FILE}*"))
    return _of_events(event for one in files for event in EventFileLoader(str(one)).Load()), str(logs)


def _of_table(file: Path) -> dict[str, Points]:
    curves: dict[str, Points] = {}
    with open(file, encoding="utf-8", newline="") as opened:
        lines = csv.reader(opened)
        if next(lines, None) != HEADER:
            raise UserError(f"{file}: expected the header {','.join(HEADER)}; delete it to see the event files instead")
        for number, line in enumerate(lines, 2):
            try:
                step, tag, value = line
                curves.setdefault(tag, []).append((int(step), float(value)))
            except ValueError as error:
                raise UserError(f"{file}: line {number}: expected step, tag and value; mend or delete it") from error
    return curves


def _of_events(events: Iterable[Event]) -> dict[str, Points]:
    curves: dict[str, Points] = {}
    for event in events:
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            # A run that goes on writes again what came after its checkpoint.
            curves = {tag: [point for point in points if point[0] < event.step] for tag, points in curves.items()}
        for tag, value in _scalars(event):
            curves.setdefault(tag, []).append((event.step, value))
    return curves


def _scalars(event: Event) -> Iterator[tuple[str, float]]:
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "scalars":
            yield value.tag, float(make_ndarray(value.tensor))


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Return a curve of at most `most` finite points: the first, the last, and the least and greatest of each stretch.

    So no peak is lost; a mean of each stretch would hide them.
    """
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) <= most:
        return points
    stretches = most // 2 - 1
    inner, kept = points[1:-1], {0, len(points) - 1}
    for number in range(stretches):
        places = range(len(inner) * number // stretches, len(inner) * (number + 1) // stretches)
        kept |= {1 + choose(places, key=lambda place: inner[place][1]) for choose in (min, max)}
    return [points[place] for place in sorted(kept)]
