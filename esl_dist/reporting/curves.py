"""Where what a run tells goes: scalars to TensorBoard, scalars.csv and other trackers, pictures to TensorBoard."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esl_dist.reporting.pictures import Picture
from esl_dist.reporting.scalar_file import ScalarFile
from esl_dist.reporting.tensorboard import open_writer, write_hyperparameters, write_pictures, write_scalars
from esl_dist.reporting.trackers import BackgroundTracker, end_trackers
from esl_dist.urls import without_secrets


class Curves:
    """The open files and trackers of a run. A tracker that fails costs one warning, and is left alone."""

    def __init__(
        self,
        logs: Path,
        steps_done: int,
        with_tensorboard: bool = True,
        others: Sequence[BackgroundTracker] = (),
        warn: Callable[[str], None] = print,
    ) -> None:
        """Open the files of a run that goes on after `steps_done` steps, or begins; they are to be closed.

        Args:
            logs: the run's folder.
            steps_done: what an interrupted start wrote after them is dropped, or hidden.
            with_tensorboard: whether TensorBoard's files are written.
            others: trackers that have begun.
            warn: what prints a warning.

        Raises:
            UserError: scalars.csv is damaged.
            OSError: as all methods here, where the disk is full or fails; it names the file.
        """
        self._file = ScalarFile(logs, steps_done)
        self._writer = open_writer(logs, steps_done) if with_tensorboard else None
        self._others, self._warn = list(others), warn

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures go anywhere."""
        return self._writer is not None

    def write(self, groups: Mapping[str, Mapping[str, float]], step: int) -> None:
        """Write values under "<group>/<name>", those of all groups at once."""
        tagged = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        if self._writer is not None:
            write_scalars(self._writer, tagged, step)
        self._file.write(tagged, step)
        for tracker in self._working():
            tracker.write(tagged, step)

    def draw(self, group: str, pictures: Mapping[str, Picture], step: int) -> None:
        """Show RGB pictures, (height, width, 3), under "<group>/<name>"."""
        if self._writer is not None:
            write_pictures(self._writer, group, pictures, step)

    def finish(self, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Show a finished run's settings beside the last values of some curves.

        Args:
            settings: flat, as `flat_settings` gives them.
            metrics: tags of curves.
        """
        if self._writer is not None:
            write_hyperparameters(self._writer, settings, metrics)

    def close(self) -> None:
        """Close the files, and end the trackers."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()
        end_trackers(self._working())
        self._working()

    def _working(self) -> list[BackgroundTracker]:
        """Return the trackers that have not failed; what those that have say is a warning, once."""
        failed = [tracker for tracker in self._others if tracker.failure is not None]
        for tracker in failed:
            self._warn(f"tracker {tracker.name}: {tracker.failure}; it gets nothing more, and training goes on")
            self._others.remove(tracker)
        return list(self._others)


def flat_settings(settings: Any) -> dict[str, str | int | float | bool]:
    """Return a dataclass's settings by their names on the command line, without what may be a secret in a URL."""

    def leaves(value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {key: leaf for inner, one in value.items() for key, leaf in leaves(one, f"{name}{inner}.").items()}
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {name[:-1]: value if is_number else without_secrets(written(value))}

    return leaves(asdict(settings), "")


def written(value: Any) -> str:
    """Write a setting's value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
