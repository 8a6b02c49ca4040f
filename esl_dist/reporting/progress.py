"""Progress bars with rate and remaining time, on standard error."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0
"""Between two updates where standard error is a file, so that logs stay short."""


def progress(items: Iterable[Item], total: int, title: str, first: int = 0, unit: str = "sample") -> "tqdm[Item]":
    """Wrap `items` in a bar that starts at `first` of `total`."""
    interval = 0.2 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    options: dict[str, Any] = {"mininterval": interval, "dynamic_ncols": True, "smoothing": 0.1}
    return tqdm(items, total=total, initial=first, desc=title, unit=unit, **options)


def silent(items: Iterable[Item], total: int, title: str) -> Iterable[Item]:
    """Give `items` back: the bar of a rank that is not the main one."""
    return items
