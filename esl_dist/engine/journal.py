"""What a training writes to TensorBoard: losses, rates, speed, corrupt samples, skipped steps, and pictures."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from esl_dist.data.labels import ClassSet
from esl_dist.engine.distributed import sum_over_ranks
from esl_dist.engine.step import Losses, Pass
from esl_dist.models.deeplab import DeepLab
from esl_dist.reporting.pictures import prediction_pictures
from esl_dist.reporting.tensorboard import open_writer, write_pictures, write_scalars


class Journal:
    """Collects losses between two entries; every rank collects, the main one writes.

    Args:
        logs: the run's folder in TensorBoard; None on ranks that write nothing.
        first_step: steps done before.
        images_a_step: pictures of all domains a step, over all ranks.
    """

    def __init__(self, logs: Path | None, first_step: int, images_a_step: int) -> None:
        """Open the folder and begin to collect."""
        self._writer = None if logs is None else open_writer(logs, first_step)
        self._images_a_step = images_a_step
        self._begin()

    def _begin(self) -> None:
        self._steps, self._began = 0, time.monotonic()
        self._sums: Losses = {}
        self._skipped = 0

    def add(self, losses: Losses, updated: bool) -> None:
        """Collect this rank's shares of a step's losses, and whether the networks were updated in it."""
        self._steps += 1
        self._skipped += not updated
        self._sums = {name: self._sums[name] + loss if name in self._sums else loss for name, loss in losses.items()}

    def mean_losses(self) -> dict[str, float]:
        """Return the global losses, the same on every rank, averaged over the steps since the last entry."""
        means = sum_over_ranks(torch.stack(list(self._sums.values())).double()) / self._steps
        return dict(zip(self._sums, means.tolist(), strict=True))

    def write(
        self, means: Mapping[str, float], rates: Mapping[str, float], corrupt: Mapping[str, int], step: int
    ) -> None:
        """Write an entry and begin to collect anew."""
        if self._writer is not None:
            speed = self._images_a_step * self._steps / (time.monotonic() - self._began)
            write_scalars(self._writer, "loss", means, step)
            write_scalars(self._writer, "learning_rate", rates, step)
            write_scalars(self._writer, "speed", {"samples_per_second": speed}, step)
            write_scalars(self._writer, "corrupt_samples", corrupt, step)
            write_scalars(self._writer, "precision", {"skipped_steps": self._skipped}, step)
        self._begin()

    def draw(self, network: DeepLab, last: Pass, classes: ClassSet, step: int) -> None:
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
