"""Curves, histograms, pictures and settings in TensorBoard, written by the main rank.

Torch's own writer leaves the disk to a thread, whose failure comes later, from another call and without a file's name,
and names its files after the clock. So events are written here, at once and to the file that is read last.
"""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams.api_pb2 import MetricName
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import histogram_raw, hparams, image, scalar

from esl_dist.files import make_folder, open_to_write

EVENT_FILE = "events.out.tfevents"
FILE_VERSION = "brain.Event:2"

SCORES = "scores"
"""Folder of a run's scores, in that of its curves."""
LAST_SCORE = "score/miou"
"""Curve of the mIoU of whichever evaluation was last, on whichever data."""


def open_writer(folder: Path, steps_done: int | None) -> RecordWriter:
    """Open a folder of event files; the writer is to be closed.

    Args:
        folder: where they lie; made if need be.
        steps_done: what an interrupted run wrote after them, which comes again, is hidden; None: nothing is.

    Raises:
        OSError: as all functions here, where the disk is full or fails; it names the file.
    """
    make_folder(folder)
    writer = RecordWriter(open_to_write(folder / _last_name(folder), "xb"))
    _write(writer, Event(file_version=FILE_VERSION))
    if steps_done is not None:
        _write(writer, Event(step=steps_done + 1, session_log=SessionLog(status=SessionLog.START)))
    writer.flush()
    return writer


def _last_name(folder: Path) -> str:
    """Return a name that comes after those of the folder's event files, also where the clock was put back.

    TensorBoard reads them in the order of their names, and a start hides what was read before it.
    """
    seconds = [path.name.removeprefix(f"{EVENT_FILE}.").partition(".")[0] for path in folder.glob(f"{EVENT_FILE}.*")]
    after = max((int(second) + 1 for second in seconds if second.isdecimal()), default=0)
    return f"{EVENT_FILE}.{max(int(time.time()), after):010d}.{socket.gethostname()}.{os.getpid()}"


def write_scalars(writer: RecordWriter, values: Mapping[str, float], step: int) -> None:
    """Write values by tag, "<group>/<name>"."""
    for tag, value in values.items():
        _write(writer, Event(step=step, summary=scalar(tag, value)))  # type: ignore[no-untyped-call]
    writer.flush()


@dataclass(frozen=True)
class Histogram:
    """Counts of values, at least one.

    Attributes:
        edges: of the bins, ascending, float64 (bins + 1,).
        counts: int64 (bins,).
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


def write_histograms(writer: RecordWriter, histograms: Mapping[str, Histogram], step: int) -> None:
    """Write histograms by tag."""
    for tag, one in histograms.items():
        edges, counts = one.edges, one.counts
        centres, seen = (edges[:-1] + edges[1:]) / 2, np.flatnonzero(counts)
        summary = histogram_raw(  # type: ignore[no-untyped-call]
            *(tag, float(edges[seen[0]]), float(edges[seen[-1] + 1]), int(counts.sum())),
            *(float(counts @ centres), float(counts @ centres**2), edges[1:].tolist(), counts.tolist()),
        )
        _write(writer, Event(step=step, summary=summary))
    writer.flush()


def write_hyperparameters(
    writer: RecordWriter, settings: Mapping[str, str | int | float | bool], metrics: Sequence[str]
) -> None:
    """Write settings for the table of runs, in which the last values of the curves `metrics` stand beside them.

    So does the run's last score, which is found whenever an evaluation writes it.
    """
    experiment, *of_run = hparams(dict(settings), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
    about = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(about.content)
    content.experiment.metric_infos.add().name.MergeFrom(MetricName(group=SCORES, tag=LAST_SCORE))
    about.content = content.SerializeToString()
    for summary in (experiment, *of_run):
        _write(writer, Event(summary=summary))
    writer.flush()


def write_pictures(writer: RecordWriter, group: str, pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Write RGB pictures, (height, width, 3), under "<group>/<name>"."""
    for name, picture in pictures.items():
        summary = image(f"{group}/{name}", picture, dataformats="HWC")  # type: ignore[no-untyped-call]
        _write(writer, Event(step=step, summary=summary))
    writer.flush()


def _write(writer: RecordWriter, event: Event) -> None:
    event.wall_time = time.time()
    writer.write(event.SerializeToString())
