"""The model of a step's time: each term where it can be calculated by hand."""

import math
from dataclasses import replace

import pytest

from benchmarks.cost_model import (
    ETHERNET,
    INFINIBAND,
    Fabric,
    Gpu,
    Way,
    Work,
    all_gather,
    all_reduce,
    efficiency,
    own_work,
    predict,
    slowest_of,
)
from benchmarks.step_counts import Counts, Operation, Sent

GPU = Gpu()
NETWORKS = pytest.mark.parametrize("fabric", [INFINIBAND, ETHERNET], ids=["infiniband", "ethernet"])


def work(own_seconds: float = 0.05, over_ranks: float = 0.06, gradients: int = 100_000_000) -> Work:
    """Return a rank's step that takes so long by its traffic, alone and with batch norm over ranks."""

    def counts(seconds: float) -> Counts:
        found = Counts()
        bytes_moved = round(seconds * GPU.memory * GPU.memory_attained)
        found.operations["target"].append(Operation(0, bytes_moved, half=True))
        return found

    return Work(counts(own_seconds), counts(over_ranks), Sent((4096,) * 10, (4096,) * 10, (gradients,), 100))


@NETWORKS
def test_one_gpu_waits_for_nobody(fabric: Fabric) -> None:
    assert all_reduce(1e9, 1, fabric) == all_gather(1e9, 1, fabric) == 0
    found = predict(work(), 1, fabric, GPU)
    assert found.total() == found.passes == pytest.approx(0.05)
    for way in (Way(), Way("reduce", fused=True), Way("none", accumulate=4)):
        assert efficiency(work(), 1, fabric, GPU, way) == 1


@NETWORKS
@pytest.mark.parametrize("gpus", [16, 64, 512])
def test_a_large_sum_takes_twice_its_bytes_over_the_slowest_link_and_a_gather_those_of_the_others(
    fabric: Fabric, gpus: int
) -> None:
    slowest = min(fabric.nvlink, fabric.node_bandwidth) * fabric.attained
    assert all_reduce(1e13, gpus, fabric) == pytest.approx(2e13 * (gpus - 1) / gpus / slowest, rel=0.01)
    assert all_gather(1e11, gpus, fabric) == pytest.approx(1e11 * (gpus - 1) / slowest, rel=0.01)


@NETWORKS
def test_a_small_gather_grows_with_the_gpus_and_a_small_sum_with_their_logarithm(fabric: Fabric) -> None:
    gathers, sums = ([one(64, 8 * nodes, fabric) for nodes in (8, 64, 512)] for one in (all_gather, all_reduce))
    assert 6 < gathers[2] / gathers[1] < 9
    assert sums[2] - sums[1] == pytest.approx(sums[1] - sums[0], rel=0.01)
    assert sums[1] - sums[0] == pytest.approx(2 * 3 * (5e-6 + fabric.hop), rel=0.01), "three doublings, there and back"


@NETWORKS
def test_more_gpus_and_more_bytes_never_cost_less(fabric: Fabric) -> None:
    for collective in (all_reduce, all_gather):
        by_gpus = [collective(1e6, gpus, fabric) for gpus in (1, 2, 4, 8, 16, 64, 512)]
        by_size = [collective(size, 64, fabric) for size in (0, 1e3, 1e6, 1e9)]
        assert by_gpus == sorted(by_gpus)
        assert by_size == sorted(by_size)


def test_within_a_node_the_network_does_not_matter() -> None:
    assert all_reduce(1e8, 8, INFINIBAND) == all_reduce(1e8, 8, ETHERNET)
    assert all_reduce(1e8, 9, INFINIBAND) < all_reduce(1e8, 9, ETHERNET)


def test_an_operation_takes_what_its_arithmetic_its_traffic_or_its_launch_takes() -> None:
    gpu = Gpu(half_peak=100.0, peak=50.0, attained=0.5, memory=10.0, memory_attained=0.5, kernel=1.0)
    assert own_work([Operation(1000, 10, half=True)], gpu) == 20
    assert own_work([Operation(1000, 10, half=False)], gpu) == 40
    assert own_work([Operation(1000, 500, half=True)], gpu) == 100
    assert own_work([Operation(1, 1, half=True)] * 3, gpu) == 3


def test_the_slowest_of_two_is_later_by_the_jitter_over_the_root_of_pi() -> None:
    assert slowest_of(1, 0.1) == pytest.approx(0, abs=1e-9)
    assert slowest_of(2, 0.1) == pytest.approx(0.1 / math.sqrt(math.pi), rel=0.01)


def test_a_slower_network_makes_no_rank_later_than_the_others() -> None:
    """Who waits for a collective waits as long as all who wait for it."""
    ways = (predict(work(), 512, fabric, GPU) for fabric in (INFINIBAND, ETHERNET))
    fast, slow = (found.slowest / (found.passes + found.layers + found.host) for found in ways)
    assert fast == slow == pytest.approx(slowest_of(512, GPU.jitter))


@NETWORKS
def test_each_answer_shortens_what_it_is_an_answer_to(fabric: Fabric) -> None:
    plain = Way()
    before = predict(work(), 64, fabric, GPU, plain)
    assert predict(work(), 64, fabric, GPU, replace(plain, fused=True)).layers == 0 < before.layers
    for statistics in ("reduce", "node", "picture", "none"):
        assert predict(work(), 64, fabric, GPU, Way(statistics)).statistics < before.statistics
    assert predict(work(), 64, fabric, GPU, replace(plain, gradient_bytes=2)).gradients < before.gradients
    buckets = replace(work(), sent=replace(work().sent, gradients=(10**7, 10**7)))
    after, during = (predict(buckets, 64, fabric, GPU, Way(overlap=one)).gradients for one in (False, True))
    assert during < after
    four = predict(work(), 64, fabric, GPU, replace(plain, accumulate=4))
    assert four.gradients == before.gradients
    assert four.statistics == pytest.approx(4 * before.statistics)


def test_an_overlapped_sum_waits_for_its_last_bucket_alone_where_the_passes_are_long_enough() -> None:
    long = replace(work(), sent=Sent((), (), (10**8, 10**8, 10**6), 0))
    found = predict(long, 64, INFINIBAND, GPU)
    assert found.gradients == pytest.approx(all_reduce(10**6, 64, INFINIBAND))


def test_a_host_that_launches_slowly_is_waited_for_beyond_what_the_device_does() -> None:
    slow = replace(GPU, launch=1.0)
    found = predict(work(), 1, INFINIBAND, slow)
    assert found.total() == pytest.approx(1.0)
    assert found.host == pytest.approx(1.0 - found.passes)
