"""Trackers other than TensorBoard, such as wandb or mlflow, by Accelerate's classes, which know how to call each.

A tracker may be slow or away, and training neither waits for it nor ends with it: a thread of its own calls it, and one
that fails costs a warning and is left alone from then on. It gets the run's name, settings and scalars.
"""

import itertools
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from esl_dist.errors import beginning

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "esl-dist"
"""What runs are kept under where a tracker has projects, or experiments."""

LONGEST_BEGIN, LONGEST_END = 60.0, 10.0
"""Seconds that a run waits for trackers to begin, and in the end for them to take what they were given."""

SHOWN_CHARACTERS = 300
"""Of what a tracker says when it fails."""


def _tracker(name: str, run: str, logs: Path) -> "GeneralTracker":
    """Return Accelerate's tracker of that name, not begun yet."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # for those who ask for one

    of_tracker: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "aim": ((run, str(logs.parent)), {"experiment": PROJECT}),
        "clearml": ((PROJECT,), {"task_name": run}),
        "comet_ml": ((PROJECT,), {}),
        "dvclive": ((run,), {"dir": str(logs / "dvclive")}),
        "mlflow": ((PROJECT,), {"run_name": run}),
        "swanlab": ((PROJECT,), {"experiment_name": run, "logdir": str(logs / "swanlab")}),
        "trackio": ((PROJECT,), {"name": run}),
        "wandb": ((PROJECT,), {"name": run, "dir": str(logs)}),
    }
    arguments, options = of_tracker.get(name, ((run,), {}))
    tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[name](*arguments, **options)
    return tracker


def _mlflow_name(tag: str, names: dict[str, str]) -> str:
    """Return a tag as MLflow takes it, which refuses most characters that are no letter, and odd paths.

    Args:
        tag: the tag.
        names: of the tags so far, by tag; a name that is taken gets a number behind it.
    """
    if tag not in names:
        parts = re.sub(r"[^\w\-./: ]", "_", tag).split("/")
        plain = "/".join("_" if part in ("", ".", "..") else part for part in parts)
        numbered = (f"{plain} {number}" if number > 1 else plain for number in itertools.count(1))
        names[tag] = next(name for name in numbered if name not in names.values())
    return names[tag]


class BackgroundTracker:
    """A tracker that a thread calls; what it is given goes there in order, and nobody waits."""

    def __init__(self, name: str, tracker: "GeneralTracker", settings: Mapping[str, Any]) -> None:
        """Begin, and hand over the settings, in the thread.

        Args:
            name: of the tracker, for messages.
            tracker: Accelerate's, not begun yet.
            settings: the run's, flat: text, numbers and truth values by name.
        """
        self.name = name
        self.failure: str | None = None
        """What a tracker that has failed says; None: it has not."""
        self._begun = threading.Event()
        self._given: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()
        # A daemon: a tracker that hangs does not keep the program.
        self._thread = threading.Thread(target=self._run, args=(tracker, dict(settings)), name=name, daemon=True)
        self._thread.start()

    def _run(self, tracker: "GeneralTracker", settings: dict[str, Any]) -> None:
        names: dict[str, str] = {}
        try:
            tracker.start()
            tracker.store_init_configuration(settings)
            self._begun.set()
            while (given := self._given.get()) is not None:
                values, step = given
                if self.name == "mlflow":
                    values = {_mlflow_name(tag, names): value for tag, value in values.items()}
                tracker.log(values, step=step)
            tracker.finish()
        except (Exception, SystemExit) as error:
            # Whatever it is, it is the tracker's, and no matter of the training.
            self.failure = beginning(f"{type(error).__name__}: {error}".splitlines()[0], SHOWN_CHARACTERS)
        finally:
            self._begun.set()

    def wait_until_begun(self, seconds: float) -> None:
        """Wait until the tracker has begun, or has failed to, but no longer than that."""
        if not self._begun.wait(max(seconds, 0)):
            self.failure = f"it has not begun within {LONGEST_BEGIN:g} seconds"

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Hand over values by tag."""
        self._given.put((dict(values), step))

    def end(self) -> None:
        """Let the tracker's run end when it has taken all."""
        self._given.put(None)

    def wait_until_ended(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than that; what it has not taken by then is lost to it."""
        self._thread.join(max(seconds, 0))
        if self._thread.is_alive() and self.failure is None:
            self.failure = "it has not taken its last values in time"


def begin_trackers(names: Sequence[str], run: str, logs: Path, settings: Mapping[str, Any]) -> list[BackgroundTracker]:
    """Begin a run with each tracker of these names, and wait until each has begun or failed.

    Args:
        names: as Accelerate calls them; their packages are installed.
        run: the run's name.
        logs: the run's folder, for trackers that write files.
        settings: see `BackgroundTracker`.
    """
    trackers = [BackgroundTracker(name, _tracker(name, run, logs), settings) for name in names]
    end = time.monotonic() + LONGEST_BEGIN
    for tracker in trackers:
        tracker.wait_until_begun(end - time.monotonic())
    return trackers


def end_trackers(trackers: Sequence[BackgroundTracker]) -> None:
    """End what was begun, all of them at once."""
    for tracker in trackers:
        tracker.end()
    end = time.monotonic() + LONGEST_END
    for tracker in trackers:
        tracker.wait_until_ended(end - time.monotonic())
