"""A step's gradients: added up over its passes and all ranks, in flat buckets, while the backward pass still runs.

DistributedDataParallel is not used: it averages, wants one backward pass a step, and forms its buckets anew after the
first step, so that a continued run would add in another order. Its idea is (Li et al., VLDB 2020, arXiv 2006.15704):
gradients lie one after the other in buckets, and a bucket is sent as soon as no pass will add to it any more. Here the
layout of the buckets is fixed and they are sent in its order. So neither when one is sent nor whether that is during a
pass shows in a bit, and all ranks begin the same sums in the same order.

How often a step adds to a bucket is learned in the first step after a start, which sends all of them at its end.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esl_dist.ranks.collectives import GRADIENTS, group_of_ranks, sum_over_ranks, world_size
from esl_dist.ranks.heartbeat import PROGRESS

BUCKET_BYTES = 32 * 2**20
"""Of one type and at most so large, though of one gradient at least: what crosses the network at once."""

SAME_PASSES = (
    "a method makes the same passes in every step, on every rank: in Method.passes, give a loss that has nothing to "
    "say a weight of 0, and minimise it all the same"
)


def in_buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return neighbours of one type together, of `BUCKET_BYTES` at most or one parameter."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(parameter)
        room -= size
    return buckets


@dataclass
class _Bucket:
    """Gradients that are sent at once.

    Attributes:
        parameters: whose gradients these are.
        flat: all of them, one after the other.
        gradients: the part of `flat` of each parameter, with its shape and strides.
        counts: how often the passes of a step add to each, as the first one has shown it.
        added: how often they have to any in this step.
        is_sent: whether their sum over the ranks has begun in this step.
    """

    parameters: Sequence[nn.Parameter]
    flat: Tensor
    gradients: Sequence[Tensor]
    counts: list[int]
    added: int = 0
    is_sent: bool = False

    def is_complete(self) -> bool:
        """Say whether passes have added as often as in the first step."""
        return self.added == sum(self.counts)


def _bucket(parameters: Sequence[nn.Parameter]) -> _Bucket:
    flat = torch.zeros(sum(one.numel() for one in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    parts = zip(parameters, torch.split(flat, [one.numel() for one in parameters]), strict=True)
    gradients = [part.as_strided(one.shape, one.stride(), part.storage_offset()) for one, part in parts]
    return _Bucket(parameters, flat, gradients, [0] * len(parameters))


class StepGradients:
    """The gradients of all trained parameters, which are zero between two steps.

    Backward passes add to them, `finish_sums` makes them those of the global batch, and `forget` ends the step.
    """

    def __init__(self, networks: Iterable[Sequence[nn.Parameter]]) -> None:
        """Give every parameter a gradient that stays its own.

        Args:
            networks: the parameters of each, in the order in which backward passes complete them; no bucket holds
                those of two, for their last passes are not the same.
        """
        by_network = [[_bucket(parameters) for parameters in in_buckets(network)] for network in networks]
        self._by_network, self._buckets = by_network, [bucket for buckets in by_network for bucket in buckets]
        self._sums: list[dist.Work] = []
        self._knows_passes = False
        for bucket in self._buckets:
            for number, parameter in enumerate(bucket.parameters):
                note = partial(self._note, bucket, number)
                parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
                parameter.grad = bucket.gradients[number]

    def _note(self, bucket: _Bucket, number: int, parameter: nn.Parameter) -> None:
        """Note that a pass has added to a gradient, and begin the sums of what is complete by that."""
        if bucket.is_sent or (self._knows_passes and not bucket.counts[number]):
            raise ValueError(f"more passes reach a parameter than in the first step after the start; {SAME_PASSES}")
        if parameter.grad is not bucket.gradients[number]:
            raise ValueError("a gradient was replaced: leave those of trained networks to `minimise`")
        bucket.added += 1
        if not self._knows_passes:
            bucket.counts[number] += 1
        elif bucket.is_complete():
            for one in takewhile(_Bucket.is_complete, [one for one in self._buckets if not one.is_sent]):
                self._begin_sum(one)

    def _begin_sum(self, bucket: _Bucket) -> None:
        bucket.is_sent = True
        if world_size() > 1:
            sum_ = dist.all_reduce(bucket.flat, group=group_of_ranks(GRADIENTS), async_op=True)
            assert sum_ is not None
            self._sums.append(sum_)

    def finish_sums(self) -> None:
        """Add up over all ranks, after the last pass of a step.

        A parameter that no pass of the first step reached has no gradient; one that those of a later step leave alone,
        on whichever ranks, has the sum of what is there.

        Raises:
            ValueError: on every rank, if in the first step the passes of ranks were not the same.
        """
        for bucket in self._buckets:
            if not bucket.is_sent:
                self._begin_sum(bucket)
        # On a GPU it is the device that waits, not the host.
        with PROGRESS.waiting("the sum of gradients"):
            for sum_ in self._sums:
                sum_.wait()
        if not self._knows_passes:
            self._learn_passes()

    def _learn_passes(self) -> None:
        counts = torch.tensor([count for bucket in self._buckets for count in bucket.counts])
        if not torch.equal(sum_over_ranks(counts), world_size() * counts):
            raise ValueError(
                "passes of this rank reach other parameters, or another number of times, than those of another; "
                f"{SAME_PASSES}"
            )
        for bucket in self._buckets:
            for parameter, count in zip(bucket.parameters, bucket.counts, strict=True):
                if count == 0:
                    parameter.grad = None
        self._knows_passes = True

    def norms(self) -> list[Tensor]:
        """Return the Euclidean norm of each network's gradients as they are now, on the device: the host reads none."""
        return [
            torch.stack([torch.linalg.vector_norm(bucket.flat, dtype=torch.float64) for bucket in buckets]).norm()
            for buckets in self._by_network
        ]

    def forget(self) -> None:
        """Make the gradients zero again, and wait for the next step's."""
        self._sums.clear()
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.added, bucket.is_sent = 0, False
