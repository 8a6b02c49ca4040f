"""The curves of a run: of scalars.csv or, where there is none, of TensorBoard's event files."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.util.tensor_util import make_ndarray

from esl_dist.reporting.scalar_file import SCALARS, read_scalars
from esl_dist.reporting.tensorboard import EVENT_FILE

RECORD_FRAME = 16
"""Bytes of a TFRecord beside its content: length, 8, and the checksums of both, 4 each."""
MOST_POINTS = 400
"""Of a curve, on the page."""

Points = list[tuple[int, float]]


def read_curves(logs: Path) -> tuple[dict[str, Points], str, list[str]]:
    """Return the curves of a folder by tag, which file they are of, and what of it cannot be read; none without files.

    Raises:
        UserError: scalars.csv is damaged.
    """
    if (file := logs / SCALARS).is_file():
        curves: dict[str, Points] = {}
        for step, tag, value in read_scalars(file):
            curves.setdefault(tag, []).append((step, value))
        return curves, str(file), []
    files = sorted(logs.glob(f"{EVENT_FILE}*"))
    problems = [problem for one in files if (problem := _lost(one)) is not None]
    events = (event for one in files for event in EventFileLoader(str(one)).Load())
    return _of_events(events), str(logs), problems


def _lost(file: Path) -> str | None:
    """Say what of an event file TensorBoard passes over in silence: all from the first damaged record on."""
    size = file.stat().st_size
    read = sum(len(record) + RECORD_FRAME for record in RawEventFileLoader(str(file)).Load())
    if read >= size:
        return None
    return f"{file}: the last {size - read} of {size} bytes are damaged or cut, so curves may lack what they hold"


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
