"""Which sample comes when: a pure function of (seed, domain, step, batch size), whatever the ranks, workers and shards.

Samples have positions 0 … n−1 in the order of the shards. Epoch after epoch gives them once each in a random order; the
endless sequence of epochs is cut into global batches, and a batch may end one epoch and begin the next. A rank takes
its part of every global batch, so the sequence does not change when their number does.

Disks and object stores like reading in sequence. So the order is not a free permutation: blocks of neighbouring samples
are shuffled, then the samples inside a moving-on window of four blocks.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCKS_IN_WINDOW = 4


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
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, domain, epoch])))
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


def rank_batches(
    order: Iterator[int], batch_size: int, accumulate: int, rank: int, world_size: int
) -> Iterator[list[int]]:
    """Yield one rank's parts of the global batches: `accumulate` lists a step, in the order of the passes.

    Each pass takes the next batch_size / accumulate positions, its ranks equal runs of them in the order of ranks.

    Args:
        order: positions from the first step's first sample on.
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
