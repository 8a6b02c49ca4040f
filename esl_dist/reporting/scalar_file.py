"""scalars.csv: every scalar of a run as a line `step,tag,value`, for whoever wants numbers without a reader of events.

    step,tag,value
    20,loss/source_cross_entropy/main,0.8124713897705078

Tags are those of TensorBoard. A run that goes on drops what an interrupted start wrote after its checkpoint, which
comes again: no step is there twice and none is missing. Lines are whole but for the last one after a kill, which is
dropped.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from esl_dist.errors import UserError
from esl_dist.files import make_folder, open_to_write, whole_file

SCALARS = "scalars.csv"
HEADER = ["step", "tag", "value"]

Line = tuple[int, str, float]
"""Step, tag, value."""


def read_scalars(file: Path) -> Iterator[Line]:
    """Yield the whole lines of a run's scalars, in the order in which they were written.

    Raises:
        UserError: a line is not one that `ScalarFile` writes.
    """
    with open(file, encoding="utf-8", errors="replace", newline="") as opened:
        for number, text in enumerate(opened, 1):
            if not text.endswith("\n"):
                # A kill, or a full disk, cut it.
                return
            try:
                cells = next(csv.reader([text]), [])
                if number == 1 and cells == HEADER:
                    continue
                step, tag, value = cells
                yield int(step), tag, float(value)
            except (ValueError, csv.Error):
                raise UserError(
                    f"{file}: line {number} is not {','.join(HEADER)} in numbers; move the file away, and the next "
                    "start begins another"
                ) from None


class ScalarFile:
    """The scalars of a run, to which lines are added."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        """Open the file for a run that goes on after `steps_done` steps, or begins; it is to be closed.

        Raises:
            UserError: the file is none of this kind.
            OSError: as all methods here, where the disk is full or fails; it names the file.
        """
        self._file, self._steps_done = folder / SCALARS, steps_done
        make_folder(folder)
        self._keep(lambda step, tag: step <= steps_done)

    def _keep(self, is_kept: Callable[[int, str], bool]) -> None:
        """Write the file anew with the lines that are kept, and open it to add others."""
        lines = list(read_scalars(self._file)) if self._file.exists() else []
        with whole_file(self._file) as file:
            file.write(_text([HEADER]))
            for start in range(0, len(lines), 1000):
                file.write(_text([line for line in lines[start : start + 1000] if is_kept(*line[:2])]))
        self._opened = open_to_write(self._file, "ab")

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Add a line for each value by tag, all of them at once."""
        if step <= self._steps_done:
            # A validation that was written, but not kept, before a stop is made again.
            self._opened.close()
            self._keep(lambda kept, tag: kept != step or tag not in values)
        self._opened.write(_text([(step, tag, value) for tag, value in values.items()]))
        self._opened.flush()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


def _text(lines: list[Line] | list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
