"""How long a step takes on so many GPUs: a model, explicit in every term, for what no machine here can measure.

A rank's own work is a roofline: each operation takes what its arithmetic, its traffic or its launch takes, whichever is
longest. A collective is α + bytes / β, with α and β of NCCL's own model, by which it chooses algorithm and protocol
(ncclTopoTuneModel, src/graph/tuning.cc at b647562). All seconds and bytes. A prediction, and no more.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from benchmarks.step_counts import Counts, Operation, Sent

MICRO = 1e-6

SEGMENTATION_PASSES = 2
"""Of a step through the segmentation network."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and the host that feeds it; the defaults are an H100 SXM.

    Attributes:
        half_peak, peak: FLOP/s of dense products in bfloat16 and TF32 (NVIDIA's H100 data sheet, without sparsity).
        attained: share of that which convolutions reach (assumed).
        memory: bytes/s of HBM3 (the data sheet), and `memory_attained`, the share that kernels reach (assumed).
        kernel: the shortest kernel (assumed).
        launch: the host's time to launch one from Python (assumed; PyTorch's eager mode takes 5 to 8 µs).
        collective: the host's time to launch a collective (assumed).
        jitter: standard deviation of what a rank does by itself in a step, relative (assumed).
    """

    half_peak: float = 989e12
    peak: float = 494e12
    attained: float = 0.5
    memory: float = 3.35e12
    memory_attained: float = 0.8
    kernel: float = 2.5 * MICRO
    launch: float = 6.5 * MICRO
    collective: float = 25 * MICRO
    jitter: float = 0.02


@dataclass(frozen=True)
class Protocol:
    """A protocol of NCCL: latencies of ring and tree (at the start, a hop over NVLink, a hop over the network).

    Attributes:
        overhead: the least a step of a ring over several nodes takes.
        ring_share, tree_share: of the bandwidth.
    """

    ring: tuple[float, float, float]
    tree: tuple[float, float, float]
    overhead: float
    ring_share: float
    tree_share: float


PROTOCOLS = (
    Protocol((6.6 * MICRO, 0.6 * MICRO, 2.7 * MICRO), (6.8 * MICRO, 0.6 * MICRO, 5 * MICRO), MICRO, 0.25, 0.92 / 3.8),
    Protocol((14 * MICRO, 1.9 * MICRO, 4 * MICRO), (14 * MICRO, 1.25 * MICRO, 8.5 * MICRO), MICRO, 0.92, 0.92 * 0.9375),
    Protocol((8.4 * MICRO, 3.4 * MICRO, 14 * MICRO), (0.0, 28 * MICRO, 28 * MICRO), 3 * MICRO, 1.0, 0.92),
)
"""LL, LL128 and Simple, as in NCCL's tables."""


@dataclass(frozen=True)
class Fabric:
    """What joins GPUs: NVLink within a node, a network between nodes.

    Attributes:
        name: for people.
        node_bandwidth: bytes/s that leave a node, all of its GPUs together, in each direction.
        hop: latency of a network hop beyond NCCL's tables, which are of InfiniBand.
        nvlink: bytes/s that leave a GPU within its node (H100: 18 links of 25 GB/s).
        attained: share of either that large messages reach (assumed).
        node: GPUs of a node.
    """

    name: str
    node_bandwidth: float
    hop: float = 0.0
    nvlink: float = 450e9
    attained: float = 0.8
    node: int = 8

    def bandwidth(self, gpus: int) -> float:
        """Return the bytes/s of a ring through so many GPUs, of all its channels together."""
        within = self.nvlink * self.attained
        return within if gpus <= self.node else min(within, self.node_bandwidth * self.attained)

    def nodes(self, gpus: int) -> int:
        """Return how many nodes so many GPUs are."""
        return math.ceil(gpus / self.node)


INFINIBAND = Fabric("NVLink + InfiniBand, NDR 400 Gb/s a GPU", 8 * 50e9)
ETHERNET = Fabric("NVLink + Ethernet, 100 Gb/s a node (TCP)", 12.5e9, hop=20 * MICRO)
"""The hop over TCP is assumed: half a round trip between two kernels, with NCCL's thread that copies."""


def all_reduce(size: float, gpus: int, fabric: Fabric) -> float:
    """Return the seconds of a sum of `size` bytes over all GPUs: the best of ring and tree in three protocols."""
    if gpus == 1:
        return 0.0
    nodes = fabric.nodes(gpus)
    steps, between = 2 * (gpus - 1), 2 * nodes if nodes > 1 else 0
    depth = math.floor(math.log2(nodes))
    times = []
    for one in PROTOCOLS:
        ring = _ring_latency(one, steps, between, fabric)
        times.append(ring + size * steps / gpus / (fabric.bandwidth(gpus) * one.ring_share))
        start, local, net = one.tree
        tree = start + 2 * ((math.ceil(gpus / nodes) - 1) * local + depth * (net + fabric.hop))
        times.append(tree + 2 * size / (fabric.bandwidth(gpus) * one.tree_share))
    return min(times)


def all_gather(size: float, gpus: int, fabric: Fabric) -> float:
    """Return the seconds until every GPU has the `size` bytes of each: a ring, NCCL's only way between nodes."""
    if gpus == 1:
        return 0.0
    steps, between = gpus - 1, fabric.nodes(gpus) - 1
    return min(
        _ring_latency(one, steps, between, fabric) + size * steps / (fabric.bandwidth(gpus) * one.ring_share)
        for one in PROTOCOLS
    )


def _ring_latency(protocol: Protocol, steps: int, between: int, fabric: Fabric) -> float:
    start, local, net = protocol.ring
    step = max(local, protocol.overhead) if between else local
    return start + (steps - between) * step + between * (net + fabric.hop)


def own_work(operations: Iterable[Operation], gpu: Gpu) -> float:
    """Return the device's seconds for a rank's operations, one after the other."""
    total = 0.0
    for one in operations:
        peak = (gpu.half_peak if one.half else gpu.peak) * gpu.attained
        total += max(one.flops / peak, one.traffic / (gpu.memory * gpu.memory_attained), gpu.kernel)
    return total


def slowest_of(ranks: int, jitter: float) -> float:
    """Return by how much the slowest of so many ranks is later than the mean: E max of normal values, σ = `jitter`."""
    normal, points = NormalDist(), 2000
    # E max = ∫ quantile(u^(1/n)) du over [0, 1].
    return jitter * sum(normal.inv_cdf(((i + 0.5) / points) ** (1 / ranks)) for i in range(points)) / points


@dataclass(frozen=True)
class Way:
    """How ranks do what they do together; the defaults are the code as it is.

    Attributes:
        statistics: of batch norm, over ranks: `gather` (an all-gather), `reduce` (one sum of values and squares around
            the running mean), and with another result `node` (of the GPUs of a node alone), `picture` (of each by
            itself: running statistics of all layers are one sum a pass), `none` (frozen).
        fused: whether the layer over ranks costs as many kernels as torch's own on one rank.
        overlap: whether gradients are summed while the passes that do not change them still run.
        gradient_bytes: of a gradient on the network.
        accumulate: micro-batches a step, whose gradients are summed once.
    """

    statistics: str = "gather"
    fused: bool = False
    overlap: bool = True
    gradient_bytes: int = 4
    accumulate: int = 1


@dataclass(frozen=True)
class Work:
    """A rank's step as it was counted: alone, and as one of many ranks; and what it sends as one of many."""

    alone: Counts
    together: Counts
    sent: Sent


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step by part.

    Attributes:
        passes: the device's for what a single rank does.
        layers: the device's for what batch norm over ranks does beside that.
        statistics: waiting for batch norm's collectives.
        gradients: waiting for their sum; what is agreed on travels a step ahead, and nobody waits for it.
        host: beyond all of these, for the host launches more slowly than the device works.
        slowest: waiting for the slowest rank.
    """

    passes: float
    layers: float
    statistics: float
    gradients: float
    host: float
    slowest: float

    def total(self) -> float:
        """Return the step's seconds."""
        return self.passes + self.layers + self.statistics + self.gradients + self.host + self.slowest


def predict(work: Work, gpus: int, fabric: Fabric, gpu: Gpu, way: Way | None = None) -> Prediction:
    """Return the seconds of a step on so many GPUs; with `accumulate`, of so many micro-batches.

    Args:
        work: of one rank and one micro-batch.
        gpus: how many ranks.
        fabric: what joins them.
        gpu: each of them.
        way: how they work together.
    """
    way = way or Way()
    passes = own_work(work.alone.all_operations(), gpu)
    layers, launches = 0.0, len(work.alone.all_operations())
    if gpus > 1 and not way.fused and way.statistics not in ("picture", "none"):
        layers = own_work(work.together.all_operations(), gpu) - passes
        launches = len(work.together.all_operations())
    collectives = _statistics(work.sent, gpus, fabric, way) if gpus > 1 else []
    statistics = sum(collectives)
    gradients = _gradients(work, gpus, fabric, gpu, way) if gpus > 1 else 0.0
    host = launches * gpu.launch + len(collectives) * gpu.collective
    many = way.accumulate
    busy = many * (passes + layers + statistics)
    beyond = max(0.0, many * host - busy)
    # What a collective takes is the same for all who wait for it.
    slowest = slowest_of(gpus, gpu.jitter) * (many * (passes + layers) + beyond)
    return Prediction(many * passes, many * layers, many * statistics, gradients, beyond, slowest)


def _statistics(sent: Sent, gpus: int, fabric: Fabric, way: Way) -> list[float]:
    """Return the seconds of each of batch norm's collectives."""
    if way.statistics == "none":
        return []
    if way.statistics == "picture":
        return [all_reduce(sum(sent.gathered) / SEGMENTATION_PASSES, gpus, fabric)] * SEGMENTATION_PASSES
    if way.statistics == "node":
        gpus = min(gpus, fabric.node)
    forwards = all_reduce if way.statistics == "reduce" else all_gather
    return [
        *(forwards(size, gpus, fabric) for size in sent.gathered),
        *(all_reduce(size, gpus, fabric) for size in sent.reduced),
    ]


def _gradients(work: Work, gpus: int, fabric: Fabric, gpu: Gpu, way: Way) -> float:
    """Return the seconds that a step waits for the sum of gradients, which lie in the buckets that are sent."""
    sums = [all_reduce(size * way.gradient_bytes / 4, gpus, fabric) for size in work.sent.gradients]
    if not way.overlap:
        return sum(sums)
    # Gradients of the target's pass are whole from its first layers backwards; half of that pass is taken as over.
    parts = {name: own_work(part, gpu) for name, part in work.alone.operations.items()}
    return max(sums[-1], sum(sums) - parts["target"] / 2 - parts["discriminators"])


def efficiency(work: Work, gpus: int, fabric: Fabric, gpu: Gpu, way: Way | None = None) -> float:
    """Return pictures a second of each GPU, relative to one alone that does as many micro-batches a step."""
    return predict(work, 1, fabric, gpu, way).total() / predict(work, gpus, fabric, gpu, way).total()
