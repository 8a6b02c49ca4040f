"""The runs that a report shows: settings, starts, the shards they read, and which run is the control of which."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esl_dist import config as settings
from esl_dist.data.labels import ClassSet
from esl_dist.errors import UserError
from esl_dist.report.scores import experiments_of, places_of
from esl_dist.reporting.curves import flat_settings, written
from esl_dist.runs.checkpoints import checkpoint_folders, read_manifest, run_config
from esl_dist.runs.run_record import RUN_RECORD, read_record
from esl_dist.runs.validations import VALIDATIONS, read_validations
from esl_dist.urls import without_secrets


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, its settings, and what its newest checkpoint says.

    Attributes:
        folder: where it lies.
        config: its settings.
        classes: those of its network; None without a checkpoint that can be read.
        shards: fingerprints by what they are for.
        step: steps done in the newest checkpoint.
        problems: what could not be read.
    """

    folder: Path
    config: settings.Train
    classes: ClassSet | None
    shards: Mapping[str, str]
    step: int | None
    problems: list[str]

    @property
    def logs(self) -> Path:
        """The folder of its curves."""
        return experiments_of(self.folder) / "logs" / self.folder.resolve().name


def elsewhere(setting: str) -> str:
    """Say what to do where a run's settings name something that is not found from here."""
    return f"give their place as {setting}, or write the report in the folder where the training was started"


def open_run(folder: Path) -> RunFolder:
    """Open a run.

    Raises:
        UserError: it is none.
    """
    config, problem = run_config(folder), f"{folder}: no checkpoint"
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            manifest = read_manifest(checkpoint)
        except UserError as error:
            problem = str(error)
            continue
        return RunFolder(folder, config, manifest.classes, manifest.shards, manifest.step, [])
    return RunFolder(folder, config, None, {}, None, [problem])


def starts_of(runs: Sequence[RunFolder]) -> dict[int, int]:
    """Return which run starts from the network of which: place → place."""
    found = {place: _possible_starts(run, runs) for place, run in enumerate(runs)}
    return {place: others[0] for place, others in found.items() if len(others) == 1 and others[0] != place}


def unclear_starts(runs: Sequence[RunFolder]) -> list[str]:
    """Return a note for each run that starts from one that was moved, where several may be that."""
    return [
        f"{run.folder}: starts from {run.config.network.start}, which is no longer there; "
        f"{' and '.join(str(runs[other].folder) for other in others)} may each be that, so none is its control"
        for run in runs
        if len(others := _possible_starts(run, runs)) > 1
    ]


def _possible_starts(run: RunFolder, runs: Sequence[RunFolder]) -> list[int]:
    start = run.config.network.start
    if start is None:
        return []
    return places_of(start, [one.folder for one in runs], experiments_of(run.folder))


def controls_of(runs: Sequence[RunFolder]) -> dict[int, tuple[int, str]]:
    """Return the control of each run that has one: place → its place, and what kind of control it is.

    What a run adds shows only beside one that had everything else. So that is, in this order: a run of the same start
    that goes on by the method of the start with nothing new, best for as many steps; the start itself; without one, a
    run from the same weights by the source alone.
    """
    starts = starts_of(runs)
    found: dict[int, tuple[int, str]] = {}
    for place, run in enumerate(runs):
        start = starts.get(place)
        if start is None:
            plain = [other for other, one in enumerate(runs) if other not in starts and _is_plain_beside(one, run)]
            found |= {place: (_likest(run, plain, runs), "source only")} if plain else {}
            continue
        same_start = [other for other, one in starts.items() if other != place and one == start]
        as_long = [other for other in same_start if _goes_on(runs[other], runs[start])]
        if as_long and not _goes_on(run, runs[start]):
            likest = _likest(run, as_long, runs)
            steps = runs[likest].config.steps
            found[place] = (likest, "trained as long" if steps == run.config.steps else f"went on for {steps} steps")
        else:
            found[place] = (start, "its start")
    return found


def _is_plain_beside(one: RunFolder, run: RunFolder) -> bool:
    return is_plain(one) and not is_plain(run) and one.config.network.start == run.config.network.start


def is_plain(run: RunFolder) -> bool:
    """Say whether a run learns from the source alone: pseudo-labels are of the target, whatever the method."""
    return run.config.method.name == "source_only" and run.config.pseudo_labels is None


def _goes_on(run: RunFolder, start: RunFolder) -> bool:
    same = run.config.method.name == start.config.method.name
    return same and run.config.pseudo_labels == start.config.pseudo_labels


def _likest(run: RunFolder, places: Sequence[int], runs: Sequence[RunFolder]) -> int:
    """Return the place of the run with the same steps, seed and folder of experiments, as far as there is one."""

    def differences(other: RunFolder) -> tuple[bool, ...]:
        own, its = run.config, other.config
        is_elsewhere = experiments_of(other.folder) != experiments_of(run.folder)
        return its.steps != own.steps, its.seed != own.seed, is_elsewhere

    return min(places, key=lambda place: differences(runs[place]))


def told_of_run(run: RunFolder, titles: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page tells of a run; `titles` are its places among other runs, by what they are to it."""
    starts, problems = [], list(run.problems)
    if (record := run.folder / RUN_RECORD).exists():
        try:
            starts = [asdict(one) for one in read_record(record)]
        except UserError as error:
            problems.append(str(error))
    else:
        problems.append(f"{record}: not there, so versions and commands are not known")
    return {
        "folder": str(run.folder),
        "method": run.config.method.name,
        "steps": run.config.steps,
        "done": run.step,
        "seed": run.config.seed,
        "from": run.config.network.start,
        "pseudo_labels": run.config.pseudo_labels and without_secrets(run.config.pseudo_labels),
        "settings": {name: written(value) for name, value in flat_settings(run.config).items()},
        "shards": dict(run.shards),
        "starts": starts,
        "validation": _validations(run, problems),
        "problems": problems,
        **titles,
    }


def _validations(run: RunFolder, problems: list[str]) -> list[dict[str, Any]]:
    file = run.folder / VALIDATIONS
    if not file.exists():
        return []
    try:
        found = read_validations(file)[1]
    except UserError as error:
        problems.append(str(error))
        return []
    return [
        {"step": step, "miou": one.miou, "entropy": one.entropy, "kept": one.kept}
        for step, one in sorted(found.items())
    ]
