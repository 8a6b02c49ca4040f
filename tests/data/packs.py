"""What tests of packing share: packing without other processes, each of which takes a second to start."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from esl_dist.data.layouts import Layout


class ThisProcess(Executor):
    """Does the work where it is given."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments, **options))
        return done


def as_read(layout: Layout, **changes: Any) -> Layout:
    """Return a layout whose files are read otherwise."""
    return replace(layout, reading=replace(layout.reading, **changes))


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
