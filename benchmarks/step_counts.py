"""What one AdvEnt step does, counted and not timed: operations, their arithmetic and traffic, memory kept, bytes sent.

The step is the project's own, on meta tensors: shapes without values, so that ResNet-101 at full size is counted in
seconds on any machine. A process group that sends nothing makes it take the way it takes on many ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import MicroBatch, Networks, Normaliser, Precision, Step
from esl_dist.data.loading import Batch
from esl_dist.models.batch_norm import batch_norms
from esl_dist.models.deeplab import DeepLab
from esl_dist.ranks.gradients import StepGradients, in_buckets
from esl_dist.training.optimisation import in_order_of_completion

FLOAT, INTEGER = 4, 8
"""Bytes."""

PASSES = ("source", "target", "discriminators", "update")
"""Parts of a step, in its order: three passes forwards and backwards, then the optimisers."""


@dataclass(frozen=True)
class Workload:
    """A training whose step is counted.

    Attributes:
        architecture: a name in `esl_dist.models.deeplab.ARCHITECTURES`.
        classes: their number.
        source, target: width and height of pictures.
        auxiliary: whether the network has two levels.
        channels: of the discriminators' first layer.
    """

    architecture: str = "resnet101"
    classes: int = 19
    source: tuple[int, int] = (1280, 720)
    target: tuple[int, int] = (1024, 512)
    auxiliary: bool = True
    channels: int = 64

    def options(self) -> settings.Method:
        """Return the method's settings."""
        return settings.Method(discriminator_channels=self.channels)

    def networks(self) -> Networks:
        """Return AdvEnt's networks, in training mode, on the meta device."""
        with torch.device("meta"):
            network = DeepLab(self.architecture, self.classes, self.auxiliary, per_domain=False)
            return build_networks(METHODS["advent"], network, self.classes, self.options()).train()


@dataclass(frozen=True)
class Operation:
    """One kernel, roughly: its arithmetic, the bytes it reads and writes, and whether it computes in bfloat16."""

    flops: int
    traffic: int
    half: bool


@dataclass
class Counts:
    """A rank's step: its operations by part of the step, and the bytes that wait for each backward pass."""

    operations: dict[str, list[Operation]] = field(default_factory=lambda: {name: [] for name in PASSES})
    kept: dict[str, int] = field(default_factory=dict)

    def all_operations(self) -> list[Operation]:
        """Return those of the whole step."""
        return [one for part in self.operations.values() for one in part]


@cache
def count_step(workload: Workload, pictures: int, ranks: int = 1, half: bool = True) -> Counts:
    """Count a step of a rank; counted once, for equal arguments.

    Args:
        workload: what is trained.
        pictures: of each domain, on this rank.
        ranks: how many there are.
        half: whether forward passes are in bfloat16, as under autocast.
    """
    networks, method, counts = workload.networks(), METHODS["advent"], Counts()
    optimizers = method.optimizers(networks, settings.Optimizer())
    # They are sent at the end of a first step, which is not counted: passes add to them, and zeros take their place.
    gradients = StepGradients(in_order_of_completion(networks, *one) for one in optimizers.items())
    batch = MicroBatch(_batch(workload.source, pictures, True), _batch(workload.target, pictures, False), 0, 0, [])
    noting = _NoteOperations(counts)
    kept = _Kept()

    def backward(loss: Tensor, network: str) -> None:
        counts.kept[noting.part] = kept.total()
        loss.backward()  # type: ignore[no-untyped-call]
        noting.next_part()

    precision = Precision(_Autocast if half else _nothing, backward)
    normaliser = Normaliser(torch.ones(2, dtype=torch.int64), pictures * ranks)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor)
    with _ranks_that_send_nothing(ranks), hooks, noting:
        method.passes(Step(networks, batch, normaliser, settings.Method(), precision))
        counts.operations["update"] += [_fused(group) for one in optimizers.values() for group in one.param_groups]
        gradients.forget()
    return counts


def _fused(group: dict[str, Any]) -> Operation:
    """Return a group's update as one kernel, which torch has for real tensors alone.

    It reads weights, gradients and states, of which SGD has one and Adam two, and writes weights and states.
    """
    states = 2 if "betas" in group else 1
    size = sum(parameter.numel() * parameter.element_size() for parameter in group["params"])
    return Operation(0, (3 + 2 * states) * size, half=False)


def _batch(size: tuple[int, int], pictures: int, labelled: bool) -> Batch:
    width, height = size
    return Batch(
        images=torch.empty(pictures, 3, height, width, device="meta"),
        labels=torch.empty(pictures, height, width, dtype=torch.uint8, device="meta") if labelled else None,
        valid_pixels=torch.full((pictures,), width * height if labelled else 0),
        positions=torch.arange(pictures),
        own_sizes=torch.tensor([size] * pictures),
        label_sizes=torch.tensor([size] * pictures) if labelled else None,
        replaced=torch.zeros(pictures, dtype=torch.bool),
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * pictures, dtype=torch.float64),
        mirrored=torch.zeros(pictures, dtype=torch.bool),
    )


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _ranks_that_send_nothing(ranks: int) -> Iterator[None]:
    if ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        if ranks > 1:
            dist.destroy_process_group()


class _Autocast(TorchFunctionMode):
    """What autocast does to these networks: convolutions in bfloat16, all else in the type that comes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            args = tuple(one.to(torch.bfloat16) if isinstance(one, Tensor) else one for one in args)
        return func(*args, **(kwargs or {}))


class _NoteOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that reads or writes memory; views and bare allocations do not."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts, self._parts = counts, iter(PASSES)
        self.part = next(self._parts)

    def next_part(self) -> None:
        self.part = next(self._parts)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.name()
        if (
            name.startswith("aten::")
            and not func.is_view
            and not name.startswith(("aten::empty", "aten::_unsafe_view"))
        ):
            packet = func._overloadpacket
            count = flop_registry.get(packet)
            flops = 0 if count is None else count(*args, **(kwargs or {}), out_val=output)
            inputs, outputs = _tensors((args, kwargs)), _tensors(output)
            half = bool(outputs) and outputs[0].dtype == torch.bfloat16
            traffic = sum(one.numel() * one.element_size() for one in inputs + outputs)
            if any(one.is_meta for one in inputs + outputs):
                self._counts.operations[self.part].append(Operation(int(flops), traffic, half))
        return output


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


class _Kept:
    """Counts the bytes that autograd keeps, each storage once; parameters are there anyway."""

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}

    def note(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            # The storage itself is held, so that none takes its place under the same number.
            self._storages[storage._cdata] = storage
        return tensor

    def total(self) -> int:
        total: int = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()
        return total


@dataclass(frozen=True)
class Sent:
    """What a rank puts into the collectives of a step, in bytes, one entry a collective.

    Attributes:
        gathered: batch norm forwards: mean and variance of the rank, for every rank.
        reduced: batch norm backwards: two sums a channel.
        gradients: one a bucket.
        agreement: labelled pixels, wishes to stop, a failure, steps, marks of replaced samples.
    """

    gathered: tuple[int, ...]
    reduced: tuple[int, ...]
    gradients: tuple[int, ...]
    agreement: int

    def total(self) -> int:
        """Return all bytes of a step."""
        return sum(self.gathered) + sum(self.reduced) + sum(self.gradients) + self.agreement

    def collectives(self) -> int:
        """Return how many there are in a step."""
        return len(self.gathered) + len(self.reduced) + len(self.gradients) + 1


def sent_in_step(networks: Networks, ranks: int, batch_size: int, passes: int = 2) -> Sent:
    """Derive what a rank sends from the shapes of the networks.

    Args:
        networks: AdvEnt's.
        ranks: how many there are.
        batch_size: pictures of each domain in the global batch.
        passes: of the segmentation network, forwards and backwards, in a step.
    """
    statistics = [2 * FLOAT * norm.num_features for norm in batch_norms(networks)] * passes
    gradients = [
        FLOAT * sum(parameter.numel() for parameter in bucket)
        for name, optimizer in METHODS["advent"].optimizers(networks, settings.Optimizer()).items()
        for bucket in in_buckets(in_order_of_completion(networks, name, optimizer))
    ]
    agreement = INTEGER * (2 + 2 + 1 + ranks + 2 * batch_size)
    return Sent(tuple(statistics), tuple(statistics), tuple(gradients), agreement)
