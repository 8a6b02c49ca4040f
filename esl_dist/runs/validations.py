"""validation.json in a run's folder: what its validations found, by step, and whose checkpoint stays as the best.

    {"format": "esl-dist validation", "format_version": 1, "made_with": {"data": "<fingerprint>", …}, "best": 400,
     "steps": {"400": {"entropy": 0.12, "kept": 0.71, "agreement": null, "scores": {"miou": 0.53, …}}, …}}

The best step is that of the highest mIoU, the first of equals. Without labels none is: entropy falls, and the share
that ESL keeps rises, also where a network forgets its rare classes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from esl_dist.checked import Share, matching, read, read_content
from esl_dist.files import write_json
from esl_dist.ranks.collectives import is_main, require_same_on_ranks, warn
from esl_dist.reporting.scores import ScoreEntries, percent
from esl_dist.runs.checkpoints import checkpoint_folder

VALIDATIONS = "validation.json"
FORMAT, FORMAT_VERSION = "esl-dist validation", 1
REMEDY = "delete it: validations then begin anew, and none before is the best"


@dataclass(frozen=True)
class Figures:
    """What a validation says of a network, over all pictures.

    Attributes:
        entropy: mean normalised entropy of the predictions, in [0, 1].
        kept: share of the pixels that ESL keeps, by thresholds from these predictions.
        agreement: share of the pixels of which teacher and student predict the same class; None without a teacher.
        scores: those of the labels (`reporting.scores.scores_of`); None without labels.
    """

    entropy: Share
    kept: Share
    agreement: Share | None = None
    scores: ScoreEntries | None = None

    @property
    def miou(self) -> float | None:
        """Mean IoU, in [0, 1]; None without labels, or without a labelled pixel."""
        return None if self.scores is None else self.scores.miou

    def line(self) -> str:
        """Return the means in words, shares in percent: `mIoU 53.1, entropy 12.0, kept 71.2`."""
        shares = {"mIoU": self.miou, "entropy": self.entropy, "kept": self.kept, "agreement": self.agreement}
        return ", ".join(f"{name} {percent(share)}" for name, share in shares.items() if share is not None)


@dataclass(frozen=True)
class _ValidationFile:
    made_with: dict[str, Any]
    steps: dict[Annotated[str, matching("[1-9][0-9]{0,12}", "a step, a number")], Figures]


def read_validations(file: Path) -> tuple[dict[str, Any], dict[int, Figures]]:
    """Return what a run's figures were made with, and the figures by step.

    Raises:
        UserError: the file is not one that `ValidationRecord` writes.
    """
    content = read_content(file, REMEDY)
    content.version_of(FORMAT, [FORMAT_VERSION])
    before = read(content, _ValidationFile)
    return before.made_with, {int(number): figures for number, figures in before.steps.items()}


def best_before(run: Path, step: int) -> int | None:
    """Return the best of the first `step` steps whose checkpoint is kept; None: there is none, or no file.

    A run that goes on without validations keeps it, too.

    Raises:
        UserError: the file is damaged.
    """
    file = run / VALIDATIONS
    if not file.exists():
        return None
    _, found = read_validations(file)
    return _best({number: one for number, one in found.items() if number <= step and _is_kept(run, number)})


class ValidationRecord:
    """The figures of a run so far; the same on every rank, and kept by the main one.

    Attributes:
        best: step of the highest mIoU whose checkpoint is kept; None: there is none.
    """

    def __init__(self, run: Path, made_with: Mapping[str, Any], step: int) -> None:
        """Go on after `step` steps with what the run's file says of them; what comes after them comes again.

        Args:
            run: the run's folder.
            made_with: what figures depend on besides the weights. Those of something else are begun anew.
            step: steps done.

        Raises:
            UserError: the file is damaged, or ranks do not find the same.
        """
        self._run, self._made_with = run, dict(made_with)
        self._found = {number: one for number, one in self._read().items() if number <= step}
        # A later one may have taken the place of the best, and been lost with its checkpoint.
        self.best = _best({number: one for number, one in self._found.items() if _is_kept(run, number)})
        require_same_on_ranks(str((sorted(self._found), self.best)), VALIDATIONS)

    def _read(self) -> dict[int, Figures]:
        file = self._run / VALIDATIONS
        if not file.exists():
            return {}
        made_with, found = read_validations(file)
        if made_with == self._made_with:
            return found
        best = _best({number: one for number, one in found.items() if _is_kept(self._run, number)})
        no_longer = (
            "" if best is None else f", and {checkpoint_folder(self._run, best)} stays no longer as the best: copy it"
        )
        warn(f"{file}: its figures are of other shards, or of another size of pictures; they are begun anew{no_longer}")
        return {}

    def __contains__(self, step: int) -> bool:
        """Say whether the network of a step was validated."""
        return step in self._found

    def __getitem__(self, step: int) -> Figures:
        """Return the figures of a step."""
        return self._found[step]

    def is_better(self, figures: Figures) -> bool:
        """Say whether figures are better than those of the best step."""
        before = None if self.best is None else self._found[self.best].miou
        return figures.miou is not None and (before is None or figures.miou > before)

    def add(self, step: int, figures: Figures) -> None:
        """Keep the figures of a step, whose checkpoint is to be kept if they are better than the best."""
        self.best = step if self.is_better(figures) else self.best
        self._found[step] = figures
        if is_main():
            self._write()

    def _write(self) -> None:
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "made_with": self._made_with,
            "best": self.best,
            "steps": {str(number): asdict(self._found[number]) for number in sorted(self._found)},
        }
        file = self._run / VALIDATIONS
        try:
            write_json(file, content)
        except OSError as error:
            warn(f"{file}: cannot be written ({error.strerror}); the best step is forgotten when the run goes on")


def _best(found: Mapping[int, Figures]) -> int | None:
    scored = {number: one.miou for number, one in found.items() if one.miou is not None}
    return max(sorted(scored), key=lambda number: scored[number], default=None)


def _is_kept(run: Path, step: int) -> bool:
    return checkpoint_folder(run, step).is_dir()
