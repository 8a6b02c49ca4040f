"""A person who writes a method and slips is told so where it happens, and what to do."""

import re
from collections.abc import Callable

import pytest

from esl_dist.adaptation.passes import Step, target_pass
from tests.adaptation.steps import domain_batch, make_step

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
