"""Which sample comes when: a pure function of (seed, domain, step, batch size), whatever the ranks, workers and shards.

Samples have positions 0 … n−1 in the order of the shards. Epoch after epoch gives them once each in a random order; the
endless sequence of epochs is cut into global batches, and a batch may end one epoch and begin the next. A rank takes
its part of every global batch, so the sequence does not change when their number does.

Disks and object stores like reading in sequence. So the order is not a free permutation: blocks of neighbouring samples
are shuffled, then the samples inside a moving-on window of four blocks.

What is drawn for a sample (the part of it that is seen, say) is a function of (seed, domain, number) alone, where
number = step · batch size + place in the global batch counts the samples of a domain from the run's first on.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.random import MT19937, Philox, RandomState, SeedSequence
from numpy.typing import NDArray

BLOCKS_IN_WINDOW = 4

CHOICE, VIEW = 0, 1
"""Purposes of random numbers: which sample comes (`rare_classes`), and what is seen of it (`views`)."""

Item = TypeVar("Item")


class DrawKey(NamedTuple):
    """What all random numbers for a sample are made of.

    Attributes:
        seed: the run's, 32 bits.
        domain: 0 for source, 1 for target.
        number: the sample's, counted from the run's first of its domain.
    """

    seed: int
    domain: int
    number: int


class Wanted(NamedTuple):
    """A sample that is to be read.

    Attributes:
        position: in the shards.
        key: of what is drawn for it; None: nothing is, the whole picture is seen as it is.
        train_id: the rare class for whose sake it was chosen; None: for none.
    """

    position: int
    key: DrawKey | None = None
    train_id: int | None = None


def as_they_are(positions: Iterable[Sequence[int]]) -> Iterator[list[Wanted]]:
    """Yield batches of whole samples, by the positions in each."""
    return ([Wanted(position) for position in batch] for batch in positions)


def random_numbers(key: DrawKey, purpose: int) -> RandomState:
    """Return the random numbers for one sample and purpose.

    Philox is a function of key and counter, so finding a sample's numbers costs no seeding (7 µs, a tenth of what
    MT19937 takes). Each sample has 2⁶⁴ numbers of its own for each purpose.
    """
    # RandomState, unlike Generator, promises the same numbers in every version of NumPy.
    return RandomState(Philox(key=[key.seed, key.domain], counter=[0, 0, purpose, key.number]))


def epoch_order(samples: int, window: int, seed: int, domain: int, epoch: int) -> NDArray[np.int64]:
    """Return the positions of all samples in the order of one epoch: a permutation of 0 … samples−1.

    Args:
        samples: number of samples, at least 1.
        window: samples among which the order is random; from `samples` on, a free permutation.
        seed: the run's seed.
        domain: 0 for source, 1 for target: each has an order of its own.
        epoch: counted from 0.
    """
    # RandomState, unlike Generator, promises the same numbers in every version of NumPy.
    random = RandomState(MT19937(SeedSequence([seed, domain, epoch])))
    block = max(1, window // BLOCKS_IN_WINDOW)
    blocks = np.array_split(np.arange(samples, dtype=np.int64), range(block, samples, block))
    order = np.concatenate([blocks[number] for number in random.permutation(len(blocks))])
    for start in range(0, samples, window):
        order[start : start + window] = random.permutation(order[start : start + window])
    return order


def endless_order(samples: int, window: int, seed: int, domain: int, first: int) -> Iterator[int]:
    """Yield positions epoch after epoch, from the `first`-th (counted from 0 at the start of epoch 0) on."""
    epoch, within = divmod(first, samples)
    while True:
        yield from epoch_order(samples, window, seed, domain, epoch)[within:].tolist()
        epoch, within = epoch + 1, 0


def keyed(order: Iterator[int], seed: int, domain: int, first: int) -> Iterator[Wanted]:
    """Yield the samples at the positions of `order`, the first of which has the number `first`."""
    return (Wanted(position, DrawKey(seed, domain, number)) for number, position in enumerate(order, first))


def rank_batches(
    order: Iterator[Item], batch_size: int, accumulate: int, rank: int, world_size: int
) -> Iterator[list[Item]]:
    """Yield one rank's parts of the global batches: `accumulate` lists a step, in the order of the passes.

    Each pass takes the next batch_size / accumulate samples, its ranks equal runs of them in the order of ranks.

    Args:
        order: samples, or their positions, from the first step's first on.
        batch_size: samples a step over all ranks and passes; a multiple of accumulate · world_size.
        accumulate: passes a step.
        rank: this rank.
        world_size: number of ranks.
    """
    pass_size = batch_size // accumulate
    share = pass_size // world_size
    while True:
        whole_pass = [next(order) for _ in range(pass_size)]
        yield whole_pass[rank * share : (rank + 1) * share]


def evenly(count: int, wanted: int) -> list[int]:
    """Choose `wanted` of `count` positions, the first of as many equal parts; all where there are no more."""
    wanted = min(wanted, count)
    return [number * count // wanted for number in range(wanted)]
