"""Checkpoints are written one at a time in a thread, and what it meets comes to the training."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esl_dist import config as settings
from esl_dist.errors import UserError
from esl_dist.runs import async_save
from esl_dist.runs.async_save import BackgroundSaver
from esl_dist.runs.checkpoints import Checkpoint, checkpoint_folder, load_checkpoint
from tests.builders import class_set
from tests.training.small_runs import after_a_step, configuration, newest_whole

OPTIONS = settings.Checkpoints(keep_newest=100)


class Gate:
    """Saves that begin, and end when they are let through."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []
        self.checkpoints: list[Checkpoint] = []
        self.now = self.most = 0
        self.failure: Exception | None = None

    def save(self, plain: Callable[..., Path], run: Path, checkpoint: Checkpoint, *options: Any) -> Path:
        self.threads.append(threading.current_thread())
        self.checkpoints.append(checkpoint)
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.set()
        assert self.open.wait(60)
        if self.failure is not None:
            raise self.failure
        folder = plain(run, checkpoint, *options)
        self.now -= 1
        return folder


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made, plain = Gate(), async_save.save_checkpoint
    monkeypatch.setattr(async_save, "save_checkpoint", lambda *arguments: made.save(plain, *arguments))
    return made


def checkpoint(step: int) -> Checkpoint:
    """Return a checkpoint with a tensor in every place that may hold one, all of them filled with its step."""

    made = replace(after_a_step(configuration(), class_set()), step=step)
    for tensor in tensors(made):
        tensor.fill_(step)
    return made


def tensors(one: Checkpoint) -> list[torch.Tensor]:
    states = [state for optimizer in one.training["optimizers"].values() for state in optimizer["state"].values()]
    parts = [*one.networks.values(), *states]
    return [tensor for part in parts for tensor in part.values()]


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path: Path, gate: Gate) -> None:
    saver, state = BackgroundSaver(tmp_path, OPTIONS), checkpoint(1)
    saver.save(state)
    assert gate.begun.wait(60)
    saver.raise_failure()
    for tensor in tensors(state):
        tensor.add_(100)
    state.training["optimizers"]["segmentation"]["param_groups"][0]["lr"] = 7
    assert newest_whole(tmp_path) is None, "it is still being written"
    gate.open.set()
    saver.finish()
    saved = load_checkpoint(checkpoint_folder(tmp_path, 1))
    assert all(bool((tensor == 1).all()) for tensor in tensors(saved))
    assert saved.training["optimizers"]["segmentation"]["param_groups"][0]["lr"] != 7


def test_one_checkpoint_is_written_at_a_time_in_the_order_of_steps(tmp_path: Path, gate: Gate) -> None:
    saver = BackgroundSaver(tmp_path, OPTIONS)
    saver.save(checkpoint(1))
    second = threading.Thread(target=saver.save, args=(checkpoint(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "the second waits for the first"
    assert len(gate.threads) == 1
    gate.open.set()
    second.join(60)
    saver.finish()
    assert (len(gate.threads), gate.most) == (2, 1)
    assert newest_whole(tmp_path) == checkpoint_folder(tmp_path, 2)


@pytest.mark.parametrize("raised_by", ["raise_failure", "finish", "save"])
def test_a_save_that_failed_ends_the_training_at_the_next_look(tmp_path: Path, gate: Gate, raised_by: str) -> None:
    saver = BackgroundSaver(tmp_path, OPTIONS)
    gate.failure = UserError("the disk is full")
    saver.save(checkpoint(1))
    saver.raise_failure()
    gate.open.set()
    gate.threads[0].join(60)
    with pytest.raises(UserError, match="the disk is full"):
        saver.save(checkpoint(2)) if raised_by == "save" else getattr(saver, raised_by)()


@pytest.fixture
def opened_by_a_note(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Let saves through as soon as the rank that waits for them notes that it gets on."""
    monkeypatch.setattr(async_save, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(async_save, "note_progress", gate.open.set)


@pytest.mark.usefixtures("opened_by_a_note")
@pytest.mark.parametrize("waits_in", ["finish", "save"])
def test_a_rank_that_waits_for_the_disk_notes_that_it_gets_on(tmp_path: Path, gate: Gate, waits_in: str) -> None:
    saver = BackgroundSaver(tmp_path, OPTIONS)
    saver.save(checkpoint(1))
    saver.save(checkpoint(2)) if waits_in == "save" else saver.finish()
    assert gate.open.is_set()
    saver.finish()


@pytest.mark.usefixtures("opened_by_a_note")
def test_without_room_for_a_copy_training_waits_for_the_disk_and_notes_that_it_gets_on(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    state, saver = checkpoint(1), BackgroundSaver(tmp_path, OPTIONS)
    monkeypatch.setattr(torch, "empty_like", full)
    saver.save(state)
    assert newest_whole(tmp_path) == checkpoint_folder(tmp_path, 1)
    assert gate.checkpoints[0] is state
    assert f"warning: {tmp_path}: memory is full; training waits while a ch" in capsys.readouterr().err
    gate.failure = UserError("the disk is full")
    with pytest.raises(UserError, match="the disk is full"):
        saver.save(replace(state, step=3))


def test_a_save_takes_the_memory_that_was_taken_at_the_start(tmp_path: Path, gate: Gate) -> None:
    gate.open.set()
    saver = BackgroundSaver(tmp_path, OPTIONS)
    at_start = saver.copy(checkpoint(0))
    assert at_start is not None
    taken = [tensor.data_ptr() for tensor in tensors(at_start)]
    for step in (1, 2):
        saver.save(checkpoint(step))
        saver.finish()
    first, second = ([tensor.data_ptr() for tensor in tensors(saved)] for saved in gate.checkpoints)
    assert taken == first == second
    saved = load_checkpoint(checkpoint_folder(tmp_path, 2))
    assert all(bool((tensor == 2).all()) for tensor in tensors(saved))


def test_without_a_thread_the_training_waits_for_the_disk_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    saver = BackgroundSaver(tmp_path, OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        saver.save(checkpoint(1))
    assert load_checkpoint(checkpoint_folder(tmp_path, 1)).step == 1
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path}: no further thread can be started; ")
    saver.save(checkpoint(2))
    saver.finish()
    assert load_checkpoint(checkpoint_folder(tmp_path, 2)).step == 2
