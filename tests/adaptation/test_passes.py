"""The passes of a step: what they compute once, in which precision, and what a method that slips is told."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.passes import Precision, Step, target_pass
from tests.adaptation.steps import PLAIN, domain_batch, make_step

NO_NETWORK = "there is no network 'teacher'; name one of segmentation, discriminators, or return it from `networks`"
NO_TARGET = "no target is read; write `needs_target = True` in the method's class"


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (lambda step: step.predict("source", "teacher"), NO_NETWORK),
        (
            lambda step: step.minimise("teacher", step.cross_entropy("source", "main", step.predict("source")["main"])),
            NO_NETWORK,
        ),
        (
            lambda step: step.minimise("segmentation", {}),
            "minimise('segmentation', …) got no loss; give it one, or leave this pass out on every rank",
        ),
        (lambda step: step.predict("target"), NO_TARGET),
        (lambda step: step.samples("target"), NO_TARGET),
        (target_pass, NO_TARGET),
    ],
)
def test_a_mistake_in_a_method_is_told(mistake: Callable[[Step], object], told: str) -> None:
    step = make_step("advent", target=None)
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        mistake(step)
    assert step.losses == {}


def test_a_target_pass_without_labels_and_without_a_loss_is_told() -> None:
    with pytest.raises(ValueError, match=r"^minimise\('segmentation', …\) got no loss"):
        target_pass(make_step("minent", domain_batch(2, labels=False)))


class NotedOperations(TorchDispatchMode):
    """Counts operations by name, and notes what is not for a GPU.

    waits: operations whose values, or the size of whose result, the host has to know. unordered: those that torch does
    by atomic additions, in another order in each run.
    """

    WAIT = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::equal")
    UNORDERED = ("aten::upsample_bilinear2d_backward", "aten::index_add", "aten::scatter_add", "aten::bincount")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []
        self.unordered: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.name().partition(".")[0]
        self.counts[name] += 1
        tensors = [one for one in tree_leaves(args[1:]) if isinstance(one, Tensor)]
        by_mask = name.startswith("aten::index") and any(one.dtype in (torch.bool, torch.uint8) for one in tensors)
        if name.startswith(self.WAIT) or by_mask:
            self.waits.append(name)
        rounds = args[0].is_floating_point() if args and isinstance(args[0], Tensor) else True
        if (name.startswith(self.UNORDERED) and rounds) or (
            name == "aten::nll_loss2d_forward" and args[3] != NO_REDUCTION
        ):
            self.unordered.append(name)
        return func(*args, **(kwargs or {}))


NO_REDUCTION = 0
"""Torch's number for `reduction="none"`."""


def noted(method: str, pseudo_labels: bool, options: settings.Method | None = None) -> NotedOperations:
    target = domain_batch(2, pseudo_labels) if method != "source_only" or pseudo_labels else None
    step = make_step(method, target, options)
    with NotedOperations() as operations:
        METHODS[method].passes(step)
    return operations


@pytest.mark.parametrize("pseudo_labels", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_pass_makes_the_host_wait_for_the_device_or_sums_in_an_order_of_chance(
    method: str, pseudo_labels: bool
) -> None:
    operations = noted(method, pseudo_labels)
    assert operations.waits == operations.unordered == []


def test_a_rule_of_trust_by_entropies_neither_makes_the_host_wait_nor_sums_in_an_order_of_chance() -> None:
    by_entropy = settings.Method("masked_consistency", teacher=settings.Teacher(trust="entropy"))
    operations = noted("masked_consistency", True, by_entropy)
    assert operations.waits == operations.unordered == []


def test_a_wait_and_a_sum_without_an_order_would_be_found() -> None:
    values, maps = torch.arange(3), torch.randn(1, 2, 3, 4, requires_grad=True)
    with NotedOperations() as operations:
        int(values.sum())
        values[values > 1]
        F.interpolate(maps, size=(5, 5), mode="bilinear").sum().backward()
        F.nll_loss(maps, torch.zeros(1, 3, 4, dtype=torch.int64), reduction="sum")
    assert {"aten::_local_scalar_dense", "aten::index"} <= set(operations.waits)
    assert set(operations.unordered) == {"aten::upsample_bilinear2d_backward", "aten::nll_loss2d_forward"}


@pytest.mark.parametrize(
    ("method", "passes"),
    [("source_only", 1), ("minent", 2), ("advent", 2), ("self_training", 2), ("masked_consistency", 3)],
)
def test_a_step_takes_one_softmax_of_each_pass_and_level_however_many_losses_it_has(method: str, passes: int) -> None:
    """And one of a teacher, of its main level."""
    # The kernel of a blur is a softmax of distances.
    options = settings.Method(method, augmentation=settings.Augmentation(blur=0.0))
    counts, teachers = noted(method, passes > 1, options).counts, method in ("self_training", "masked_consistency")
    assert counts["aten::_log_softmax"] == passes * 2 + teachers
    assert counts["aten::_log_softmax_backward_data"] == passes * 2
    assert not [name for name in counts if "softmax" in name and not name.startswith("aten::_log_softmax")]


def test_advent_takes_the_self_information_of_each_domain_and_level_once() -> None:
    """Four maps, and the slope of the target's two on the way back."""
    assert noted("advent", pseudo_labels=True).counts["aten::exp"] == 4 + 2


def in_float32(precision: Precision) -> tuple[Step, list[torch.dtype]]:
    """Take a step of AdvEnt; returns it and the types of the discriminators' outputs."""
    step = make_step("advent", domain_batch(2, labels=True), precision=precision)
    step.networks.float()
    for samples in (step.batch.source, step.batch.target):
        samples["images"] = samples["images"].float()
    outputs: list[torch.dtype] = []
    for discriminator in step.networks["discriminators"].values():
        discriminator.register_forward_hook(lambda _, inputs, output: outputs.append(output.dtype))
    METHODS["advent"].passes(step)
    return step, outputs


def test_discriminators_compute_in_half_precision_as_the_network_does_and_losses_in_float32() -> None:
    half, outputs = in_float32(replace(PLAIN, autocast=lambda: torch.autocast("cpu", torch.bfloat16)))
    assert outputs == 6 * [torch.bfloat16], "two levels: to be fooled, on the source and on the target"
    full, outputs = in_float32(PLAIN)
    assert outputs == 6 * [torch.float32]
    assert half.losses.keys() == full.losses.keys()
    for name, loss in half.losses.items():
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(full.losses[name]), rel=0.05), name
    assert all(one.grad.dtype == torch.float32 for one in half.networks.parameters() if one.grad is not None)
