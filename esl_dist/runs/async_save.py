"""Checkpoints written while training goes on: it stands still only for a copy to memory."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.errors import memory_words
from esl_dist.machine import shortage
from esl_dist.ranks.collectives import is_main, note_progress, warn
from esl_dist.runs.checkpoints import Checkpoint, save_checkpoint

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
        self._copy: dict[str, Any] = {}
        self._written = threading.Event()
        self._written.set()
        self._failure: BaseException | None = None

    def save(self, checkpoint: Checkpoint, best: int | None = None) -> None:
        """Copy a checkpoint and begin to write it, after the one before; without memory or a thread, wait for it.

        Args:
            checkpoint: what is saved.
            best: step whose checkpoint stays, whatever the options say.

        Raises:
            UserError: the one before could not be written; or this one, if it was waited for.
        """
        if not is_main():
            return
        self.finish()
        copied = self.copy(checkpoint)
        to_write = checkpoint if copied is None else copied
        self._written.clear()
        try:
            # Not a daemon: an interrupted program still finishes the checkpoint.
            threading.Thread(target=self._write, args=(to_write, best)).start()
        except RuntimeError as error:
            self._warn(shortage(error) or str(error))
            self._write(to_write, best)
        if copied is None:
            self.finish()

    def copy(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return a copy, in the memory of the one before; None, with a warning, where there is no memory for one.

        Called at the start, it takes the memory that all saves need, so that its want shows before hours of training.
        """
        if not is_main():
            return None
        try:
            self._copy = in_memory({"networks": checkpoint.networks, "training": checkpoint.training}, self._copy)
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                # Once for all copies. Not marked as a place where ranks wait: the others do not come here.
                torch.cuda.current_stream().synchronize()
        except (RuntimeError, MemoryError) as error:
            if (words := memory_words(error)) is None:
                raise
            self._warn(words)
            return None
        return replace(checkpoint, **self._copy)

    def _warn(self, reason: str) -> None:
        warn(f"{self._run}: {reason}; training waits while a checkpoint is written")

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

    def _write(self, checkpoint: Checkpoint, best: int | None) -> None:
        try:
            save_checkpoint(self._run, checkpoint, self._options, best)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._written.set()


def in_memory(value: Any, memory: Any = None) -> Any:
    """Return dictionaries and lists, one in the other, with copies of their tensors in the host's memory.

    Args:
        value: what is copied.
        memory: an earlier copy, whose tensors are written anew where they fit.

    What comes from a GPU is there when its stream is through.
    """
    if isinstance(value, dict):
        before = memory if isinstance(memory, dict) else {}
        return {key: in_memory(one, before.get(key)) for key, one in value.items()}
    if isinstance(value, list):
        places = memory if isinstance(memory, list) and len(memory) == len(value) else [None] * len(value)
        return [in_memory(one, place) for one, place in zip(value, places, strict=True)]
    if not isinstance(value, Tensor):
        return value
    if not isinstance(memory, Tensor) or (memory.shape, memory.dtype) != (value.shape, value.dtype):
        # Pinned, a GPU fills it at the speed of the bus.
        memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
    return memory.copy_(value, non_blocking=value.is_cuda)
