"""What lies in the folders of runs, checkpoints and jobs, by name, for those who look there without torch."""

import shlex
from pathlib import Path

from esl_dist.errors import UserError

MANIFEST = "manifest.json"
"""In a checkpoint's folder: what it holds, with checksums."""
RUN_CONFIG = "config.yaml"
"""In a run's folder: its settings, defaults, name and seed included."""
LOCK = ".lock"
"""Where one start at a time is at work."""
UNFINISHED = ".scratch"
"""In the folder of a pseudo-label job until it is done."""


def scoring_command(run: Path) -> str:
    """Return the command that scores a run, and leaves its scores where a report finds them."""
    given, output = f"checkpoint={run}", f"output={run / 'scores' / run.resolve().name}.json"
    return f"esl-dist evaluate {shlex.quote(given)} data.path=… {shlex.quote(output)}"


def refuse_missing_network(place: Path) -> None:
    """Make sure that a trained network is there.

    Raises:
        UserError: it is missing.
    """
    if not _holds_network(place):
        raise no_checkpoint(place)


def _holds_network(place: Path) -> bool:
    if not place.is_dir():
        return place.exists()
    return (place / MANIFEST).exists() or any(place.glob("checkpoints/step-[0-9]*"))


def refuse_missing_run(run: Path) -> None:
    """Make sure that a folder is a run's.

    Raises:
        UserError: it is none.
    """
    if not (run / RUN_CONFIG).exists():
        raise no_run(run)


def no_checkpoint(place: Path) -> UserError:
    """Return the message of a place that holds no trained network."""
    return UserError(
        f"{place}: no checkpoint; expected a run folder with checkpoints/, one checkpoint's folder, or a file of "
        "weights"
    )


def no_run(run: Path) -> UserError:
    """Return the message of a place that is no run's folder."""
    return UserError(f"{run}: no run; expected a folder with {RUN_CONFIG}, as esl-dist train writes it")
