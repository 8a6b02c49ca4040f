"""The benchmark of jobs refuses sides of other results, and gives the plain side all processors."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import jobs
from benchmarks.measure import UnequalError


@pytest.mark.parametrize("measured", [jobs.pseudo_label_row, jobs.evaluation_row])
def test_works_of_other_results_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, measured: Callable[..., object]
) -> None:
    drawn = jobs.plain_prediction

    def other(*arguments: object) -> object:
        labels, entropies = drawn(*arguments)
        return (labels + 1) % len(jobs.CLASSES), entropies

    monkeypatch.setattr(jobs, "plain_prediction", other)
    monkeypatch.setattr(jobs, "our_confusion", lambda logits, label: torch.eye(19, dtype=torch.int64))
    with pytest.raises(UnequalError, match=r"differ|counted elsewhere"), torch.inference_mode():
        measured((128, 64), 2, 1)


def test_the_plain_side_has_torch_on_all_processors_and_ours_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    before, processors = torch.get_num_threads(), torch.get_num_threads() + 2
    monkeypatch.setattr(jobs, "usable_processors", lambda: processors)
    seen: list[int] = []

    def work() -> None:
        seen.append(torch.get_num_threads())

    def fail() -> None:
        work()
        raise UnequalError

    jobs.seconds_a_picture("a row", (work, work), 1, 1)
    assert seen == [1, processors, processors, 1]
    with pytest.raises(UnequalError):
        jobs.on_threads(processors, fail)
    assert torch.get_num_threads() == before
