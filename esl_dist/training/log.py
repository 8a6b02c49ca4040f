"""What a training tells while it runs: losses, shares, rates, norms, speed, memory, what was skipped, and pictures."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, TypeVar

import psutil
import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import Rates
from esl_dist.adaptation.passes import SHARE, Losses
from esl_dist.config_types import TENSORBOARD
from esl_dist.errors import UserError
from esl_dist.ranks.collectives import gather_texts, is_main, sum_over_ranks, warn
from esl_dist.reporting.curves import Curves, flat_settings
from esl_dist.reporting.pictures import Picture
from esl_dist.reporting.progress import Entry, show_entry, show_line, steps_bar
from esl_dist.reporting.trackers import BackgroundTracker, begin_trackers, end_trackers
from esl_dist.runs.validations import Figures
from esl_dist.training.contradictions import refuse_missing_trackers
from esl_dist.training.work import Work

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")

GIGABYTE = 1e9


class Interval(TypedDict):
    """What is collected between two entries, over all ranks.

    Attributes:
        losses: each loss, summed over the steps that updated the networks.
        updates: the number of these steps.
        skipped: the number of the others.
        shares: part and whole of each share that is shown, where there is one, likewise.
    """

    losses: dict[str, float]
    updates: int
    skipped: int
    shares: NotRequired[dict[str, list[int]]]


EMPTY_INTERVAL = Interval(losses={}, updates=0, skipped=0)
EMPTY_COUNTS: Mapping[str, Tensor] = {}


def open_curves(config: settings.Train, logs: Path, first_step: int) -> Curves | None:
    """Open what the main rank writes to; None on the others. Called on every rank.

    A tracker that cannot begin ends a run at its beginning; one that goes on does so without it, with a warning.

    Raises:
        UserError: on every rank, if a tracker is not installed or cannot begin; on the main one, if scalars.csv is
            damaged.
    """
    others = [name for name in dict.fromkeys(config.trackers) if name != TENSORBOARD]
    begun: list[BackgroundTracker] = []
    problem = ""
    if is_main() and others:
        try:
            refuse_missing_trackers(others)
            begun = begin_trackers(others, str(config.name), logs, flat_settings(config))
            _refuse_failed(begun if not first_step else [])
        except UserError as error:
            problem = str(error)
            end_trackers(begun)
    if others and (told := gather_texts(problem)[0]):
        raise UserError(problem or told)
    return Curves(logs, first_step, TENSORBOARD in config.trackers, begun, warn) if is_main() else None


def _refuse_failed(begun: Iterable[BackgroundTracker]) -> None:
    for tracker in begun:
        if tracker.failure is not None:
            raise UserError(f"trackers: {tracker.name} cannot begin: {tracker.failure}; set it up, or leave it out")


class TrainingLog:
    """Collects losses between two entries; every rank collects, the main one writes and shows.

    Attributes:
        work: FLOPs of a step on this rank; none where they were not counted.
    """

    def __init__(
        self,
        curves: Curves | None,
        title: str,
        images_a_step: int,
        first_step: int,
        interval: Interval = EMPTY_INTERVAL,
    ) -> None:
        """Begin to collect.

        Args:
            curves: where the main rank writes to; None on others.
            title: of what is shown: the run's name.
            images_a_step: pictures of all domains a step, over all ranks.
            first_step: steps done before.
            interval: what was collected of the present interval before.
        """
        self._curves = curves
        self._bar: tqdm[int] | None = None
        self._title, self._images_a_step, self._first_step = title, images_a_step, first_step
        self.work, self._device = Work(), torch.device("cpu")
        self._peak: float | None = None
        self._begin(interval)

    def measure_on(self, device: torch.device, peak: float | None) -> None:
        """Measure the memory of a device, and the work against its highest FLOP/s, where that is known."""
        self._device, self._peak = device, peak

    def steps(self, last_step: int) -> Generator[int]:
        """Give every step that is to be done, and show on the main rank how far the training is."""
        if not is_main():
            yield from range(self._first_step, last_step)
            return
        self._bar = steps_bar(self._first_step, last_step, self._title)
        with self._bar:
            yield from self._bar

    def waited_for(self, items: Iterator[Item]) -> Iterator[Item]:
        """Give every item, and note how long this rank waits for it."""
        while True:
            began = time.monotonic()
            item = next(items)
            self._waited += time.monotonic() - began
            yield item

    def _begin(self, interval: Interval) -> None:
        self._steps, self._began, self._waited = 0, time.monotonic(), 0.0
        # Sums in float64 round by so little that neither ranks nor restarts show in float32, which TensorBoard keeps.
        self._sums = {
            name: torch.tensor(loss if is_main() else 0.0, dtype=torch.float64)
            for name, loss in interval["losses"].items()
        }
        self._shares: dict[str, Tensor] = {}
        self._shares_before = interval.get("shares", {})
        self._updates, self._skipped = interval["updates"], interval["skipped"]

    def add(self, losses: Losses, updated: bool, counts: Mapping[str, Tensor] = EMPTY_COUNTS) -> None:
        """Collect this rank's part of a step; that of a step that did not update the networks does not count.

        Half precision skips a step that overflowed, whose losses may be no numbers.

        Args:
            losses: its shares of the global batch's.
            updated: whether the networks were.
            counts: what it has counted, of which shares are shown.
        """
        self._steps += 1
        self._updates += updated
        self._skipped += not updated
        if updated:
            self._sums = {name: _added(self._sums.get(name), loss) for name, loss in losses.items()}
            for name, count in counts.items():
                if name.startswith(SHARE):
                    shown = name.removeprefix(SHARE)
                    self._shares[shown] = self._shares[shown] + count if shown in self._shares else count

    def leave_out(self, seconds: float) -> None:
        """Let what took so long not count for the speed of the steps."""
        self._began += seconds

    def interval(self) -> Interval:
        """Return what was collected since the last entry; called on every rank."""
        collected = Interval(losses=self._summed_over_ranks(), updates=self._updates, skipped=self._skipped)
        shares = self._shares_over_ranks()
        return Interval(**collected, shares=shares) if shares else collected

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

    def _shares_over_ranks(self) -> dict[str, list[int]]:
        found = {name: list(counts) for name, counts in self._shares_before.items()}
        if self._shares:
            totals = sum_over_ranks(torch.stack(list(self._shares.values())).cpu()).tolist()
            for name, (part, whole) in zip(self._shares, totals, strict=True):
                part_before, whole_before = found.get(name, [0, 0])
                found[name] = [part_before + part, whole_before + whole]
        return found

    def write(
        self,
        step: int,
        means: Mapping[str, float],
        rates: Rates,
        corrupt: Mapping[str, int],
        norms: Mapping[str, Tensor] = EMPTY_COUNTS,
    ) -> None:
        """Write and show an entry after `step` steps, and begin to collect anew; called on every rank.

        Args:
            step: steps done.
            means: `mean_losses`.
            rates: learning rates of the last step.
            corrupt: samples replaced so far, by domain.
            norms: of the last step's gradients, by network.
        """
        seconds, shares = time.monotonic() - self._began, self._shares_over_ranks()
        speed = self._images_a_step * self._steps / seconds
        if self._curves is not None:
            groups: dict[str, Mapping[str, float]] = {
                "loss": means,
                "learning_rate": rates.groups,
                "gradient_norm": _finite(norms),
                "speed": {"samples_per_second": speed, **self._of_this_rank(seconds)},
                "memory": _memory(self._device),
                "corrupt_samples": corrupt,
                "precision": {"skipped_steps": self._skipped},
            }
            for name, (part, whole) in shares.items():
                group, _, shown = name.rpartition("/")
                groups[group] = {**groups.get(group, {}), shown: part / whole}
            self._curves.write(groups, step)
        if self._bar is not None:
            left = (self._bar.total - step) * self._images_a_step / speed
            show_entry(self._bar, Entry(step, means, rates.base, speed, left), self._title, self._bar.total)
        self._begin(EMPTY_INTERVAL)

    def _of_this_rank(self, seconds: float) -> dict[str, float]:
        """Return the share of time in which it waits for samples, TFLOP/s, and their share of the device's highest.

        The latter two are left out where they are not known.
        """
        waiting = {"waiting_for_data": self._waited / seconds}
        if not self.work.flops:
            return waiting
        rate = self.work.flops * self._steps / seconds
        return waiting | {"tflops": rate / 1e12} | ({} if self._peak is None else {"mfu": rate / self._peak})

    def write_validation(self, step: int, figures: Figures, is_best: bool) -> None:
        """Write and show what a validation after `step` steps found."""
        if self._curves is None:
            return
        means = {"miou": figures.miou, "entropy": figures.entropy, "kept": figures.kept, "agreement": figures.agreement}
        by_class = {} if figures.scores is None else figures.scores.iou
        known = {
            group: {name: value for name, value in values.items() if value is not None}
            for group, values in (("validation", means), ("validation_iou", by_class))
        }
        self._curves.write(known, step)
        best = ", the best so far" if is_best else ""
        show_line(self._bar, f"{self._title}: validation at step {step}: {figures.line()}{best}")

    def draw(self, step: int, rows: Iterable[tuple[str, Mapping[str, Picture]]]) -> None:
        """Show rows of pictures by group and key; they are made on the main rank alone, if they are shown at all."""
        if self._curves is None or not self._curves.shows_pictures:
            return
        began = time.monotonic()
        for group, pictures in rows:
            self._curves.draw(group, pictures, step)
        self.leave_out(time.monotonic() - began)

    def finish(self, step: int, config: settings.Train, losses: Iterable[str], best: Figures | None) -> None:
        """Write the settings of a finished run beside its last losses, and its last and best mIoU.

        Args:
            step: steps done.
            config: the settings.
            losses: names of those that it ends with.
            best: figures of the best step; None: there is none.
        """
        if self._curves is None:
            return
        metrics = [f"loss/{name}" for name in losses]
        if best is not None and best.miou is not None:
            self._curves.write({"validation": {"best_miou": best.miou}}, step)
            metrics += ["validation/miou", "validation/best_miou"]
        self._curves.finish(flat_settings(config), metrics)

    def close(self) -> None:
        """Close the files, and end the trackers."""
        if self._curves is not None:
            self._curves.close()


def _added(total: Tensor | None, loss: Tensor) -> Tensor:
    return loss.double() if total is None else total + loss


def _finite(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the values that are finite: a step that overflowed has no norms."""
    return {name: float(value) for name, value in values.items() if value.isfinite()}


def _memory(device: torch.device) -> dict[str, float]:
    """Return gigabytes (10⁹ bytes): resident in this process, and the most that tensors took on its GPU so far."""
    resident = {"resident_gigabytes": psutil.Process().memory_info().rss / GIGABYTE}
    if device.type != "cuda":
        return resident
    return {**resident, "gpu_peak_gigabytes": torch.cuda.max_memory_allocated(device) / GIGABYTE}
