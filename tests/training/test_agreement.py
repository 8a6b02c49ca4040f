"""What ranks tell each other of the next step: sums, wishes, and errors that wait for their turn."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from esl_dist.adaptation.passes import MicroBatch
from esl_dist.data.loading import Batch
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.ranks.collectives import wait_for_all
from esl_dist.training.agreement import prepare
from esl_dist.training.stop_request import StopRequest
from tests.on_ranks import run_on_ranks

BATCH_SIZE = 4


def samples(valid_pixels: int, replaced: bool) -> Batch:
    """Return two samples, of which the second may stand for a corrupt one."""
    return Batch(
        images=torch.zeros(2, 3, 1, 1),
        labels=None,
        valid_pixels=torch.tensor([valid_pixels, 1]),
        positions=torch.arange(2),
        own_sizes=torch.ones(2, 2),
        label_sizes=None,
        replaced=torch.tensor([0, int(replaced)]),
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2, dtype=torch.float64),
        mirrored=torch.zeros(2, dtype=torch.bool),
    )


def part_of(rank: int) -> list[MicroBatch]:
    places = range(2 * rank, 2 * rank + 2)
    return [MicroBatch(samples(10 + rank, rank == 1), samples(100, False), 0, 0, places)]


def asked(interrupted: bool) -> StopRequest:
    request = StopRequest()
    request.asked, request.interrupted = True, interrupted
    return request


def check_sums() -> None:
    rank = dist.get_rank()
    request = asked(interrupted=False) if rank == 1 else StopRequest()
    coming = prepare(lambda: part_of(rank), BATCH_SIZE, 9, request, "step 1")
    found = coming.agreement()
    assert found.valid_pixels.tolist() == [10 + 1 + 11 + 1, 2 * (100 + 1)]
    assert found.replaced.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert (found.stop, found.interrupted, found.is_read) == (True, False, True)
    assert [list(one.places) for one in coming.begin(found)] == [[2 * rank, 2 * rank + 1]]


def check_an_error() -> None:
    """It is known on every rank, and raised when the step begins, on the rank that has it."""
    rank = dist.get_rank()

    def read() -> list[MicroBatch]:
        if rank == 1:
            raise CorruptSampleError("damaged")
        return part_of(rank)

    request = asked(interrupted=True) if rank == 0 else StopRequest()
    coming = prepare(read, BATCH_SIZE, 9, request, "step 1")
    found = coming.agreement()
    assert (found.stop, found.interrupted, found.is_read) == (True, True, False)
    if rank == 1:
        with pytest.raises(CorruptSampleError, match="damaged"):
            coming.begin(found)
        # The other rank waits for this one's last words, or for whatever it does.
        wait_for_all()
    else:
        coming.begin(found)


def check_other_numbers_of_steps() -> None:
    coming = prepare(lambda: part_of(0), BATCH_SIZE, 9 - dist.get_rank(), StopRequest(), "step 1")
    with pytest.raises(UserError, match=r"ranks \[1\] are to do another number of steps than rank 0"):
        coming.agreement()


@pytest.mark.parametrize("check", [check_sums, check_an_error, check_other_numbers_of_steps])
def test_two_ranks_agree_on_the_next_step(check: Callable[[], None]) -> None:
    run_on_ranks(check)


def test_ctrl_c_while_a_batch_is_read_is_no_error_of_the_batch() -> None:
    def read() -> list[MicroBatch]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(read, BATCH_SIZE, 9, StopRequest(), "step 1")
