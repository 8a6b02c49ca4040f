"""Training leaves the losses and the networks of the published programs, to rounding, on one rank and on two."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.on_ranks import run_on_ranks
from tests.reference.arrays import needs_reference, relative_difference
from tests.reference.training import RUNS, Outcome, recorded, train

pytestmark = [pytest.mark.reference, needs_reference]

TOLERANCE = 1e-8
ON_TWO_RANKS, SHORTEST = "train_esl_batch2", "train_minent"
OTHERS = [(ON_TWO_RANKS, 2), *((name, 1) for name in RUNS if name != SHORTEST)]
RUNS_AND_RANKS = [(SHORTEST, 1), *(pytest.param(one, marks=pytest.mark.grid) for one in OTHERS)]


@pytest.fixture(scope="module", params=RUNS_AND_RANKS, ids="{0[0]} on {0[1]}".format)
def run(request: pytest.FixtureRequest) -> tuple[str, list[Outcome]]:
    """Return the name of a run and what each of its ranks is left with."""
    name, ranks = request.param
    return name, run_on_ranks(train, name, ranks=ranks)


def test_the_losses_of_every_step_are_the_published_ones(run: tuple[str, list[Outcome]]) -> None:
    published, outcomes = run
    expected = recorded(published).losses
    for outcome in outcomes:
        losses = outcome.losses
        assert losses.keys() <= expected.keys()
        for name, values in expected.items():
            # A loss that a run does not have was recorded as 0.
            actual = losses.get(name, np.zeros_like(values))
            np.testing.assert_allclose(actual, values, rtol=_accuracy(values), atol=0, err_msg=name)


def test_every_tensor_ends_with_the_published_norm(run: tuple[str, list[Outcome]]) -> None:
    published, outcomes = run
    expected = recorded(published).norms
    for outcome in outcomes:
        norms = outcome.norms
        for name, norm in expected.items():
            assert abs(norms[name] - norm) <= TOLERANCE * norm, name


def test_recorded_tensors_end_as_published(run: tuple[str, list[Outcome]]) -> None:
    published, outcomes = run
    expected = recorded(published).tensors
    for outcome in outcomes:
        tensors = outcome.tensors
        for name, values in expected.items():
            assert relative_difference(tensors[name], values) <= TOLERANCE, name


def _accuracy(losses: NDArray[np.float64]) -> float:
    """Return the relative accuracy with which losses were recorded.

    The published binary cross-entropy, of `loss_adv_*` and `loss_d_*`, came out in float32 for its labels were: values
    of no more digits than that, after a few roundings at each of its pixels.
    """
    in_float32 = np.array_equal(losses, losses.astype(np.float32))
    return 4 * float(np.finfo(np.float32).eps) if in_float32 else TOLERANCE
