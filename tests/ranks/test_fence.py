"""The host runs one step ahead of a GPU and no more, and is seen to wait. Without one here, its events are played."""

import pytest
import torch

from esl_dist.ranks.fence import Fence
from esl_dist.ranks.heartbeat import PROGRESS


def test_the_host_waits_for_the_step_before_last_and_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[object] = []
    waited: list[int] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "the host sleeps"

        def record(self) -> None:
            recorded.append(self)

        def synchronize(self) -> None:
            assert PROGRESS.is_in_collective
            assert PROGRESS.place == "the end of a step on the GPU"
            waited.append(recorded.index(self))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    fence = Fence(torch.device("cuda", 0))
    for step in range(4):
        fence.end_step()
        assert waited == list(range(step)), "the one before, and each once"
    assert not PROGRESS.is_in_collective


def test_nothing_is_waited_for_on_a_cpu() -> None:
    fence, begun = Fence(torch.device("cpu")), PROGRESS.begun
    for _ in range(3):
        fence.end_step()
    assert PROGRESS.begun == begun
