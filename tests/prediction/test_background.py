"""Work in the background gives its results in order, a few at a time, and its errors with their words."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from esl_dist.errors import UserError
from esl_dist.prediction import background
from esl_dist.prediction.background import in_background, on_host

THREADS = 3


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "usable_processors", lambda: THREADS)


def test_results_come_in_the_order_of_the_tasks_whichever_is_done_first() -> None:
    second = threading.Event()

    def first() -> str:
        assert second.wait(60)
        return "first"

    def last() -> str:
        second.set()
        return "last"

    assert list(in_background([first, last])) == ["first", "last"]


def test_the_calling_thread_does_no_task() -> None:
    assert threading.get_ident() not in set(in_background([threading.get_ident] * 5))


def taken_by(number: int, taken: list[int]) -> Iterator[Callable[[], int]]:
    for position in range(number):
        taken.append(position)
        yield partial(int, position)


def test_few_results_wait_however_many_tasks_there_are() -> None:
    """So memory does not grow with the number of pictures."""
    taken: list[int] = []
    for result in in_background(taken_by(50, taken)):
        assert len(taken) <= result + 1 + THREADS
    assert len(taken) == 50


def test_what_a_task_raises_is_raised_in_its_turn_with_its_words() -> None:
    def fails() -> int:
        raise UserError("a/b: the disk is full")

    results = in_background([partial(int, 7), fails, partial(int, 8)])
    assert next(results) == 7
    with pytest.raises(UserError, match="a/b: the disk is full"):
        next(results)


def test_after_an_error_no_thread_is_left() -> None:
    def fails() -> int:
        raise ValueError("no")

    before = threading.active_count()
    with pytest.raises(ValueError, match="no"):
        list(in_background([fails] * 9))
    assert threading.active_count() == before


def test_on_a_cpu_the_thread_that_wants_a_result_computes_it() -> None:
    threads: list[int] = []

    def compute() -> tuple[torch.Tensor, ...]:
        threads.append(threading.get_ident())
        return (torch.arange(3),)

    later = on_host(compute, torch.device("cpu"))
    assert threads == []
    [(result,)] = in_background([later])
    assert result.tolist() == [0, 1, 2]
    assert threads != [threading.get_ident()]


def test_no_gradient_is_prepared_in_the_background() -> None:
    weight = torch.ones(3, requires_grad=True)
    [(result,)] = in_background([on_host(lambda: (weight * 2,), torch.device("cpu"))])
    assert not result.requires_grad


def test_on_a_gpu_work_is_queued_at_once_and_the_thread_that_wants_a_result_sleeps_until_it_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event and the device stand in for CUDA's."""
    gpu, wanted = torch.device("cuda", 1), threading.Event()
    story: list[tuple[Any, int]] = []

    class Event:
        def __init__(self, blocking: bool = False) -> None:
            assert blocking, "the thread would take a core"

        def record(self) -> None:
            story.append(("recorded", threading.get_ident()))

        def synchronize(self) -> None:
            assert wanted.is_set()
            story.append(("waited for", threading.get_ident()))

    @contextmanager
    def at(device: torch.device) -> Iterator[None]:
        story.append((device, threading.get_ident()))
        yield
        story.append(("left", threading.get_ident()))

    def compute() -> tuple[torch.Tensor, ...]:
        story.append(("computed", threading.get_ident()))
        return (torch.arange(3),)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", at)
    later = on_host(compute, gpu)
    own = threading.get_ident()
    assert story == [("computed", own), ("recorded", own)]
    wanted.set()
    [(result,)] = in_background([later])
    assert result.tolist() == [0, 1, 2]
    assert [what for what, _ in story[2:]] == [gpu, "waited for", "left"]
    assert own not in {thread for _, thread in story[2:]}
