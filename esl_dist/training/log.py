"""What a training writes to TensorBoard: losses, rates, speed, corrupt samples, skipped steps, and pictures."""

import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from esl_dist.adaptation.optimisers import Rates
from esl_dist.adaptation.passes import Losses, MicroBatch
from esl_dist.config import DOMAINS
from esl_dist.data.labels import ClassSet
from esl_dist.models.deeplab import DeepLab
from esl_dist.ranks.collectives import is_main, sum_over_ranks
from esl_dist.reporting.pictures import prediction_pictures
from esl_dist.reporting.progress import Entry, show_entry, show_line, steps_bar
from esl_dist.reporting.tensorboard import open_writer, write_pictures, write_scalars
from esl_dist.runs.validations import Figures

if TYPE_CHECKING:
    from tqdm import tqdm


class Interval(TypedDict):
    """What is collected between two entries, over all ranks.

    Attributes:
        losses: each loss, summed over the steps that updated the networks.
        updates: the number of these steps.
        skipped: the number of the others.
    """

    losses: dict[str, float]
    updates: int
    skipped: int


EMPTY_INTERVAL = Interval(losses={}, updates=0, skipped=0)


class TrainingLog:
    """Collects losses between two entries; every rank collects, the main one writes and shows."""

    def __init__(
        self, logs: Path, title: str, images_a_step: int, first_step: int, interval: Interval = EMPTY_INTERVAL
    ) -> None:
        """Open the folder, on the main rank, and begin to collect.

        Args:
            logs: the run's folder in TensorBoard.
            title: of what is shown: the run's name.
            images_a_step: pictures of all domains a step, over all ranks.
            first_step: steps done before.
            interval: what was collected of the present interval before.
        """
        self._writer = open_writer(logs, first_step) if is_main() else None
        self._bar: tqdm[int] | None = None
        self._title, self._images_a_step, self._first_step = title, images_a_step, first_step
        self._begin(interval)

    def steps(self, last_step: int) -> Generator[int]:
        """Give every step that is to be done, and show on the main rank how far the training is."""
        if not is_main():
            yield from range(self._first_step, last_step)
            return
        self._bar = steps_bar(self._first_step, last_step, self._title)
        with self._bar:
            yield from self._bar

    def _begin(self, interval: Interval) -> None:
        self._steps, self._began = 0, time.monotonic()
        # Sums in float64 round by so little that neither ranks nor restarts show in float32, which TensorBoard keeps.
        self._sums = {
            name: torch.tensor(loss if is_main() else 0.0, dtype=torch.float64)
            for name, loss in interval["losses"].items()
        }
        self._updates, self._skipped = interval["updates"], interval["skipped"]

    def add(self, losses: Losses, updated: bool) -> None:
        """Collect this rank's shares of a step's losses; those of a step that did not update the networks do not count.

        Half precision skips a step that overflowed, whose losses may be no numbers.
        """
        self._steps += 1
        self._updates += updated
        self._skipped += not updated
        if updated:
            self._sums = {name: _added(self._sums.get(name), loss) for name, loss in losses.items()}

    def leave_out(self, seconds: float) -> None:
        """Let what took so long not count for the speed of the steps."""
        self._began += seconds

    def interval(self) -> Interval:
        """Return what was collected since the last entry; called on every rank."""
        return Interval(losses=self._summed_over_ranks(), updates=self._updates, skipped=self._skipped)

    def mean_losses(self) -> dict[str, float]:
        """Return the global losses, the same on every rank, averaged over the updates since the last entry.

        Without any there are none.
        """
        return {name: total / self._updates for name, total in self._summed_over_ranks().items()}

    def _summed_over_ranks(self) -> dict[str, float]:
        if not self._sums:
            return {}
        totals = sum_over_ranks(torch.stack(list(self._sums.values())).cpu())
        return dict(zip(self._sums, totals.tolist(), strict=True))

    def write(self, step: int, means: Mapping[str, float], rates: Rates, corrupt: Mapping[str, int]) -> None:
        """Write and show an entry after `step` steps, and begin to collect anew.

        Args:
            step: steps done.
            means: `mean_losses`.
            rates: learning rates of the last step.
            corrupt: samples replaced so far, by domain.
        """
        speed = self._images_a_step * self._steps / (time.monotonic() - self._began)
        if self._writer is not None:
            write_scalars(self._writer, "loss", means, step)
            write_scalars(self._writer, "learning_rate", rates.groups, step)
            write_scalars(self._writer, "speed", {"samples_per_second": speed}, step)
            write_scalars(self._writer, "corrupt_samples", corrupt, step)
            write_scalars(self._writer, "precision", {"skipped_steps": self._skipped}, step)
        if self._bar is not None:
            left = (self._bar.total - step) * self._images_a_step / speed
            show_entry(self._bar, Entry(step, means, rates.base, speed, left), self._title, self._bar.total)
        self._begin(EMPTY_INTERVAL)

    def write_validation(self, step: int, figures: Figures, is_best: bool) -> None:
        """Write and show what a validation after `step` steps found."""
        if self._writer is None:
            return
        means = {"miou": figures.miou, "entropy": figures.entropy, "kept": figures.kept, "agreement": figures.agreement}
        by_class = {} if figures.scores is None else figures.scores.iou
        for group, values in (("validation", means), ("validation_iou", by_class)):
            known = {name: value for name, value in values.items() if value is not None}
            write_scalars(self._writer, group, known, step)
        best = ", the best so far" if is_best else ""
        show_line(self._bar, f"{self._title}: validation at step {step}: {figures.line()}{best}")

    def draw(self, step: int, network: nn.Module, last: MicroBatch, classes: ClassSet) -> None:
        """Show the rank's first sample of each domain as evaluation would see it now; nothing is updated."""
        if self._writer is None:
            return
        assert isinstance(network, DeepLab)
        network.eval()
        for domain, samples in zip(DOMAINS, (last.source, last.target), strict=True):
            if samples is not None:
                pictures = prediction_pictures(network, samples["images"], domain, classes)
                write_pictures(self._writer, domain, pictures, step)
        network.train()

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()


def _added(total: Tensor | None, loss: Tensor) -> Tensor:
    return loss.double() if total is None else total + loss
