"""What a training writes to TensorBoard: losses, rates, speed, corrupt samples, skipped steps, and pictures."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from esl_dist.data.labels import ClassSet
from esl_dist.models.deeplab import DeepLab
from esl_dist.ranks.collectives import is_main, sum_over_ranks
from esl_dist.reporting.pictures import prediction_pictures
from esl_dist.reporting.tensorboard import open_writer, write_pictures, write_scalars
from esl_dist.training.step import Losses, MicroBatch


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
    """Collects losses between two entries; every rank collects, the main one writes.

    Args:
        logs: the run's folder in TensorBoard; None on ranks that write nothing.
        first_step: steps done before.
        images_a_step: pictures of all domains a step, over all ranks.
        interval: what was collected of the present interval before.
    """

    def __init__(
        self, logs: Path | None, first_step: int, images_a_step: int, interval: Interval = EMPTY_INTERVAL
    ) -> None:
        """Open the folder and begin to collect."""
        self._writer = None if logs is None else open_writer(logs, first_step)
        self._images_a_step = images_a_step
        self._begin(interval)

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
        totals = sum_over_ranks(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, totals.tolist(), strict=True))

    def write(
        self, means: Mapping[str, float], rates: Mapping[str, float], corrupt: Mapping[str, int], step: int
    ) -> float:
        """Write an entry and begin to collect anew; returns this start's speed since the one before, in samples/s."""
        speed = self._images_a_step * self._steps / (time.monotonic() - self._began)
        if self._writer is not None:
            write_scalars(self._writer, "loss", means, step)
            write_scalars(self._writer, "learning_rate", rates, step)
            write_scalars(self._writer, "speed", {"samples_per_second": speed}, step)
            write_scalars(self._writer, "corrupt_samples", corrupt, step)
            write_scalars(self._writer, "precision", {"skipped_steps": self._skipped}, step)
        self._begin(EMPTY_INTERVAL)
        return speed

    def draw(self, network: DeepLab, last: MicroBatch, classes: ClassSet, step: int) -> None:
        """Show the rank's first sample of each domain as evaluation would see it now; nothing is updated."""
        if self._writer is None:
            return
        network.eval()
        pictures = prediction_pictures(network, last.source["images"], "source", classes)
        write_pictures(self._writer, "source", pictures, step)
        if last.target is not None:
            pictures = prediction_pictures(network, last.target["images"], "target", classes)
            write_pictures(self._writer, "target", pictures, step)
        network.train()

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()


def _added(total: Tensor | None, loss: Tensor) -> Tensor:
    return loss.double() if total is None else total + loss
