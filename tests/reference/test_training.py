"""Training leaves the losses and the networks of the published programs, to rounding, on one rank and on two."""

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.reference.arrays import needs_reference, relative_difference
from tests.reference.training import RUNS, Outcome, recorded, train, train_as_rank

pytestmark = [pytest.mark.reference, needs_reference]

TOLERANCE = 1e-8
RANKS = 2
BATCH_OF_TWO = "train_esl_batch2"

Outcomes = dict[tuple[str, int], list[Future[Outcome]]]
"""Name of a run, number of ranks → each rank's outcome; to be read as they complete, so that the first error shows."""

each_run = pytest.mark.parametrize(("run", "ranks"), [(BATCH_OF_TWO, RANKS), *((run, 1) for run in RUNS)])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Train everything once, in two processes of one thread."""
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    with ProcessPoolExecutor(RANKS, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        # The ranks come first: only then is every process free, and none waits for another.
        on_ranks = [pool.submit(train_as_rank, BATCH_OF_TWO, rank, RANKS, meeting) for rank in range(RANKS)]
        yield {(BATCH_OF_TWO, RANKS): on_ranks} | {(run, 1): [pool.submit(train, run)] for run in RUNS}
        pool.shutdown(cancel_futures=True)


@each_run
def test_the_losses_of_every_step_are_the_published_ones(outcomes: Outcomes, run: str, ranks: int) -> None:
    expected = recorded(run).losses
    for outcome in as_completed(outcomes[run, ranks]):
        losses = outcome.result().losses
        assert losses.keys() <= expected.keys()
        for name, values in expected.items():
            # A loss that a run does not have was recorded as 0.
            actual = losses.get(name, np.zeros_like(values))
            np.testing.assert_allclose(actual, values, rtol=_accuracy(values), atol=0, err_msg=name)


@each_run
def test_every_tensor_ends_with_the_published_norm(outcomes: Outcomes, run: str, ranks: int) -> None:
    expected = recorded(run).norms
    for outcome in as_completed(outcomes[run, ranks]):
        norms = outcome.result().norms
        for name, norm in expected.items():
            assert abs(norms[name] - norm) <= TOLERANCE * norm, name


@each_run
def test_recorded_tensors_end_as_published(outcomes: Outcomes, run: str, ranks: int) -> None:
    expected = recorded(run).tensors
    for outcome in as_completed(outcomes[run, ranks]):
        tensors = outcome.result().tensors
        for name, values in expected.items():
            assert relative_difference(tensors[name], values) <= TOLERANCE, name


def _accuracy(losses: NDArray[np.float64]) -> float:
    """Return the relative accuracy with which losses were recorded.

    The published binary cross-entropy, of `loss_adv_*` and `loss_d_*`, came out in float32 for its labels were: values
    of no more digits than that, after a few roundings at each of its pixels.
    """
    in_float32 = np.array_equal(losses, losses.astype(np.float32))
    return 4 * float(np.finfo(np.float32).eps) if in_float32 else TOLERANCE
