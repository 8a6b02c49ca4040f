"""What the ranks tell each other before each step, in one sum that travels while the step before runs.

And the count of corrupt samples, over all ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esl_dist.adaptation.passes import MicroBatch
from esl_dist.config import DOMAINS
from esl_dist.errors import UserError
from esl_dist.ranks.collectives import BegunSum, begin_sum, note_place, rank, wait_for_all, world_size
from esl_dist.training.data import TrainingData
from esl_dist.training.stop_request import StopRequest


@dataclass(frozen=True)
class Agreement:
    """What has to be known of all ranks before a step.

    Attributes:
        valid_pixels: labelled pixels of source and target in the global batch, int64 (2,), in the host's memory.
        replaced: marks the samples of the global batch that stand for corrupt ones, int64 (2, batch_size).
        stop: whether any rank was asked to stop.
        interrupted: whether with Ctrl-C.
        is_read: whether every rank could read its part of the batch.
    """

    valid_pixels: Tensor
    replaced: Tensor
    stop: bool
    interrupted: bool
    is_read: bool


@dataclass(frozen=True)
class ComingStep:
    """A step of which the ranks tell each other while the one before runs.

    Attributes:
        part: this rank's of the global batch, or why it cannot be read.
        batch_size: samples of each domain in the global batch.
        place: named in messages.
        sum: of what the ranks say.
    """

    part: Sequence[MicroBatch] | Exception
    batch_size: int
    place: str
    sum: BegunSum

    def agreement(self) -> Agreement:
        """Return what all ranks have said.

        Raises:
            UserError: ranks that are to do another number of steps than rank 0, before they part.
        """
        found = self.sum.wait(self.place)
        sizes = [2, 2, 1, world_size(), 2 * self.batch_size]
        valid_pixels, requests, unread, all_steps, replaced = torch.split(found, sizes)
        others = (all_steps != all_steps[0]).nonzero().flatten().tolist()
        if others:
            raise UserError(f"ranks {others} are to do another number of steps than rank 0; start all with the same")
        stop, interrupted = requests.bool().tolist()
        return Agreement(valid_pixels, replaced.reshape(2, self.batch_size), stop, interrupted, not unread.any())

    def begin(self, agreed: Agreement) -> Sequence[MicroBatch]:
        """Return this rank's part of the batch, now that the step has its turn.

        Raises:
            Exception: whatever kept it from being read.
            LostRankError: on the other ranks, which wait for the last words of the one with the error.
        """
        note_place(self.place)
        if isinstance(self.part, Exception):
            raise self.part
        if not agreed.is_read:
            wait_for_all()
        return self.part


def prepare(
    read: Callable[[], Sequence[MicroBatch]], batch_size: int, steps: int, request: StopRequest, place: str
) -> ComingStep:
    """Read this rank's part of a step, and begin to tell the other ranks all that has to be known before it.

    What goes wrong in reading is kept until the step has its turn: the one before may have to be saved.

    Args:
        read: returns this rank's part of the global batch.
        batch_size: samples of each domain in the global batch.
        steps: where this rank's training ends.
        request: whether this rank was asked to stop.
        place: named in messages.
    """
    part: Sequence[MicroBatch] | Exception
    try:
        part = read()
    except Exception as error:
        part = error
    readable = [] if isinstance(part, Exception) else part
    own_steps = torch.zeros(world_size(), dtype=torch.int64)
    own_steps[rank()] = steps
    said = torch.tensor([request.asked, request.interrupted, isinstance(part, Exception)], dtype=torch.int64)
    own = [local_valid_pixels(readable), said, own_steps, local_replaced(readable, batch_size).flatten()]
    return ComingStep(part, batch_size, place, begin_sum(torch.cat(own)))


def local_valid_pixels(batches: Sequence[MicroBatch]) -> Tensor:
    """Count this rank's labelled pixels in a step: int64 (2,), source and target."""
    counts = torch.zeros(2, dtype=torch.int64)
    for one in batches:
        for domain, samples in enumerate((one.source, one.target)):
            if samples is not None:
                counts[domain] += samples["valid_pixels"].sum()
    return counts


def local_replaced(batches: Sequence[MicroBatch], batch_size: int) -> Tensor:
    """Return `HostBatch.replaced` of this rank's samples, by place in the global batch: int64 (2, batch_size)."""
    marks = torch.zeros(2, batch_size, dtype=torch.int64)
    for one in batches:
        for domain, samples in enumerate((one.source, one.target)):
            if samples is not None:
                marks[domain, list(one.places)] = samples["replaced"]
    return marks


class CorruptSamples:
    """Counts the corrupt samples of each domain and epoch, over all ranks, and holds them to their largest share.

    An order by rare classes has no epochs, and draws a sample again and again: of the source it is then the samples
    that count, each once.
    """

    def __init__(self, data: TrainingData, batch_size: int, largest_share: float, before: dict[str, list[int]]) -> None:
        """Go on with the counts of `before` (`state`), or begin where it is empty."""
        self._sizes = [0 if samples is None else len(samples) for samples in (data.source, data.target)]
        self._batch_size, self._largest_share = batch_size, largest_share
        self._epochs, self._in_epoch, self._totals = (
            before.get(key, [0, 0]) for key in ("epochs", "in_epoch", "totals")
        )
        self._has_epochs = [data.rare_classes is None, True]
        self._drawn = set(before.get("drawn", []))

    def add(self, step: int, replaced: Tensor) -> None:
        """Count the samples that were replaced in a step, counted from 0: `local_replaced`, summed over ranks.

        Raises:
            UserError: more than the largest share of a domain's samples are corrupt.
        """
        for domain, place in replaced.nonzero().tolist():
            self._totals[domain] += 1
            if self._has_epochs[domain]:
                epoch = (step * self._batch_size + place) // self._sizes[domain]
                if epoch != self._epochs[domain]:
                    self._epochs[domain], self._in_epoch[domain] = epoch, 0
                self._in_epoch[domain] += 1
                count, where = self._in_epoch[domain], f"epoch {epoch}: "
            else:
                self._drawn.add(int(replaced[domain, place]) - 1)
                count, where = len(self._drawn), ""
            if count / self._sizes[domain] > self._largest_share:
                raise UserError(
                    f"{where}{count} of {self._sizes[domain]} {DOMAINS[domain]} samples are corrupt, more than "
                    f"loader.skip_corrupt={self._largest_share:g} allows; the warnings above name them: pack the data "
                    "set again"
                )

    def state(self) -> dict[str, list[int]]:
        """Return the counts, to go on with."""
        counts = {"epochs": list(self._epochs), "in_epoch": list(self._in_epoch), "totals": list(self._totals)}
        return counts | ({"drawn": sorted(self._drawn)} if self._drawn else {})

    def totals(self) -> dict[str, int]:
        """Return how many samples were replaced so far, by domain, where there were any."""
        return {name: count for name, count in zip(DOMAINS, self._totals, strict=True) if count}
