"""Which sample comes when depends on nothing but seed, domain and step."""

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esl_dist.data import sampling
from esl_dist.data.sampling import BLOCKS_IN_WINDOW, endless_order, epoch_order, rank_batches

samples = st.integers(1, 200)
windows = st.integers(4, 300)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 50)
LIMITS = settings(max_examples=60, deadline=None)


@LIMITS
@given(samples, windows, seeds, st.integers(0, 1), epochs)
def test_an_epoch_has_every_sample_once(number: int, window: int, seed: int, domain: int, epoch: int) -> None:
    order = epoch_order(number, window, seed, domain, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(number))


@LIMITS
@given(samples, windows, seeds, st.integers(0, 1), epochs)
def test_the_order_is_a_function_of_its_arguments(number: int, window: int, seed: int, domain: int, epoch: int) -> None:
    first = epoch_order(number, window, seed, domain, epoch)
    np.random.seed(epoch)
    assert epoch_order(number, window, seed, domain, epoch).tolist() == first.tolist()


def test_the_order_is_the_same_in_every_version() -> None:
    """A run that goes on after an update must go on with the very next sample."""
    assert epoch_order(12, 8, seed=3, domain=0, epoch=0).tolist() == [3, 2, 0, 5, 11, 10, 4, 1, 8, 7, 9, 6]
    assert epoch_order(12, 8, seed=3, domain=1, epoch=2).tolist() == [7, 6, 5, 0, 1, 8, 4, 9, 10, 11, 2, 3]


def test_seed_domain_and_epoch_each_change_the_order() -> None:
    arguments = [(seed, domain, epoch) for seed in range(3) for domain in range(2) for epoch in range(3)]
    orders = {tuple(epoch_order(100, 100, *each).tolist()) for each in arguments}
    assert len(orders) == len(arguments)


def test_a_window_as_large_as_the_set_is_a_free_permutation() -> None:
    """Every sample is found at every place about equally often."""
    orders = np.array([epoch_order(8, 8, seed, 0, 0) for seed in range(2000)])
    counts = np.array([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert np.abs(counts - 250).max() < 75  # five standard deviations


@LIMITS
@given(st.integers(50, 400), st.integers(8, 60), seeds)
def test_a_window_reads_few_neighbourhoods(number: int, window: int, seed: int) -> None:
    """Samples of one window come from a few runs of neighbours: that is what disks like."""
    order = epoch_order(number, window, seed, 0, 0)
    block = window // BLOCKS_IN_WINDOW
    for start in range(0, number, window):
        blocks = set((order[start : start + window] // block).tolist())
        # A part of one at either end, and the last block of the set, which may be short, among the whole ones.
        assert len(blocks) <= window // block + 3


@LIMITS
@given(samples, windows, seeds, st.integers(0, 1000))
def test_starting_anywhere_gives_the_tail_of_the_whole_sequence(
    number: int, window: int, seed: int, first: int
) -> None:
    whole = list(islice(endless_order(number, window, seed, 0, 0), first + 30))
    assert list(islice(endless_order(number, window, seed, 0, first), 30)) == whole[first:]


def test_the_sequence_is_epoch_after_epoch() -> None:
    whole = list(islice(endless_order(7, 4, 5, 1, 0), 21))
    assert whole == [position for epoch in range(3) for position in epoch_order(7, 4, 5, 1, epoch).tolist()]


@LIMITS
@given(
    number=samples,
    seed=seeds,
    ranks=st.sampled_from([1, 2, 3, 4]),
    accumulate=st.sampled_from([1, 2, 3]),
    share=st.integers(1, 3),
)
def test_ranks_and_passes_together_give_the_one_sequence(
    number: int, seed: int, ranks: int, accumulate: int, share: int
) -> None:
    batch_size, steps = ranks * accumulate * share, 5
    parts = [
        list(
            islice(
                rank_batches(endless_order(number, 16, seed, 0, 0), batch_size, accumulate, rank, ranks),
                steps * accumulate,
            )
        )
        for rank in range(ranks)
    ]
    assert all(len(batch) == share for part in parts for batch in part)
    together = [position for each_pass in zip(*parts, strict=True) for batch in each_pass for position in batch]
    assert together == list(islice(endless_order(number, 16, seed, 0, 0), steps * batch_size))


def test_the_global_batch_is_the_same_on_any_number_of_ranks_and_passes() -> None:
    """A batch of 12 on 1, 2, 3 or 4 ranks, in 1, 2 or 3 passes: the same 12 samples at every step."""
    whole = np.array(list(islice(endless_order(10, 8, 1, 0, 0), 48))).reshape(4, 12)
    for ranks in (1, 2, 3, 4):
        for accumulate in (each for each in (1, 2, 3) if 12 % (ranks * each) == 0):
            for step in range(4):
                seen = []
                for rank in range(ranks):
                    order = endless_order(10, 8, 1, 0, step * 12)
                    seen += chain.from_iterable(islice(rank_batches(order, 12, accumulate, rank, ranks), accumulate))
                assert sorted(seen) == sorted(whole[step].tolist())


def test_a_batch_crosses_the_end_of_an_epoch_and_may_hold_several() -> None:
    order = endless_order(3, 4, 0, 0, 0)
    first, second = islice(rank_batches(order, 8, 1, 0, 1), 2)
    whole = [position for epoch in range(6) for position in epoch_order(3, 4, 0, 0, epoch).tolist()]
    assert first + second == whole[:16]


def test_finding_the_place_of_a_restart_costs_one_epoch_s_order_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    plain = sampling.epoch_order

    def counted(samples: int, window: int, seed: int, domain: int, epoch: int) -> NDArray[np.int64]:
        computed.append(epoch)
        return plain(samples, window, seed, domain, epoch)

    monkeypatch.setattr(sampling, "epoch_order", counted)
    for first in (0, 7, 10**12):
        next(endless_order(5, 8, 0, 0, first))
    assert computed == [0, 1, 10**12 // 5]
