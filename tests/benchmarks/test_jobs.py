"""Both sides of the benchmark of jobs have equal results, at tiny sizes, and what it prints is a row for each."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import jobs


def test_every_row_compares_two_works_of_equal_results() -> None:
    rows = jobs.rows(quick=True)
    assert [row.keys() for row in rows] == [{"name", "ours", "plain", "unit", "ratio", "goal"}] * 2
    assert all(row["ratio"] == row["plain"] / row["ours"] for row in rows)


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
    with pytest.raises(ValueError, match=r"differ|counted elsewhere"):
        measured((128, 64), 2, 1)
