"""Checkpoints written while training goes on: it stands still only for a copy to memory."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from esl_dist import config as settings
from esl_dist.machine import free_memory, shortage
from esl_dist.ranks.collectives import is_main, note_progress, warn
from esl_dist.runs.checkpoints import Checkpoint, save_checkpoint

MEMORY_SHARE = 0.5
"""Share of the free memory that a copy may take; where it would take more, training waits for the disk."""

NOTE_SECONDS = 1.0
"""How often a rank that waits for the disk tells the others that it gets on."""


class BackgroundSaver:
    """Saves one checkpoint at a time in a thread; on ranks other than the main one it saves nothing.

    Args:
        run: the run's folder.
        options: what is kept.
    """

    def __init__(self, run: Path, options: settings.Checkpoints) -> None:
        """Begin without anything to save."""
        self._run, self._options = run, options
        self._written = threading.Event()
        self._written.set()
        self._failure: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and begin to write it, after the one before; where memory is short, wait for it instead.

        Raises:
            UserError: the one before could not be written; or this one, if it was waited for.
        """
        if not is_main():
            return
        self.finish()
        with_copy = _bytes(checkpoint) <= MEMORY_SHARE * free_memory()
        to_write = copied(checkpoint) if with_copy else checkpoint
        self._written.clear()
        try:
            # Not a daemon: an interrupted program still finishes the checkpoint.
            threading.Thread(target=self._write, args=(to_write,)).start()
        except RuntimeError as error:
            warn(f"{self._run}: {shortage(error) or error}; training waits while this checkpoint is written")
            self._write(to_write)
        if not with_copy:
            self.finish()

    def raise_failure(self) -> None:
        """Raise what went wrong in the thread, if anything did.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Return when the last checkpoint is written; the other ranks hear meanwhile that this one gets on.

        Raises:
            UserError: it could not be written.
        """
        # Not Thread.join: interrupted, it takes the thread for ended, and the program would end without it.
        while not self._written.wait(NOTE_SECONDS):
            note_progress()
        self.raise_failure()

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            save_checkpoint(self._run, checkpoint, self._options)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._written.set()


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tensors are copies on the CPU."""
    return replace(
        checkpoint,
        networks=_copied(checkpoint.networks),
        training=_copied(checkpoint.training),
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _bytes(checkpoint: Checkpoint) -> int:
    parts = (checkpoint.networks, checkpoint.training)
    return sum(tensor.numel() * tensor.element_size() for part in parts for tensor in _tensors(part))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)
