"""How far a program is, on standard error: a bar on a terminal, plain lines where a file or a job's log is written."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from esl_dist.reporting.accounts import duration

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0
"""Between two lines where standard error is no terminal, so that logs stay short."""

USUAL_SIZE = {"ncols": 120, "nrows": 24}
"""Of a terminal that does not know its own."""


def progress(items: Iterable[Item], total: int, title: str, unit: str = "sample") -> Iterator[Item]:
    """Give every one of `total` items, and show how many were given, from none to all."""
    if sys.stderr.isatty():
        yield from _bar(items, 0, total, title, unit)
        return
    began = told = time.monotonic()
    # What takes long or hangs has a name from its beginning.
    _tell(f"{title}: {_share(0, total, unit)}")
    done = 0
    for item in items:
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            speed = done / (now - began)
            left = f", {duration((total - done) / speed)} left" if done else ""
            _tell(f"{title}: {_share(done, total, unit)}, {speed:.3g} {unit}s/s{left}")
        yield item
        done += 1
    _tell(f"{title}: {_share(done, total, unit)}, took {duration(time.monotonic() - began)}")


def _share(done: int, total: int, unit: str) -> str:
    return f"{done}/{total} {unit}s" + (f" ({100 * done // total} %)" if total else "")


def _tell(text: str) -> None:
    # A whole line at once: several processes may share the stream.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def steps_bar(first: int, total: int, title: str) -> "tqdm[int]":
    """Return the steps of a training from `first` to `total`, in a bar on a terminal, else without anything shown."""
    return _bar(range(first, total), first, total, title, "step")


def _bar(items: Iterable[Item], first: int, total: int, title: str, unit: str) -> "tqdm[Item]":
    size: dict[str, Any] = {"dynamic_ncols": True} if _knows_its_size() else USUAL_SIZE
    quiet = not sys.stderr.isatty()
    return tqdm(
        items, desc=title, total=total, initial=first, unit=unit, mininterval=0.2, smoothing=0.1, disable=quiet, **size
    )


def _knows_its_size() -> bool:
    """Say whether the terminal has a size: those of containers and scripts may have none, and tqdm shows nothing."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return False


@dataclass(frozen=True)
class Entry:
    """What a training tells after a step of those since the entry before.

    Attributes:
        step: steps done.
        losses: means by name, `<loss>/<level>`; none if half precision skipped every step.
        rate: the learning rate before the factors of the network's parts.
        samples_per_second: pictures of all domains.
        seconds_left: until the last step, at the speed of these steps.
    """

    step: int
    losses: Mapping[str, float]
    rate: float
    samples_per_second: float
    seconds_left: float


def show_entry(bar: "tqdm[int]", entry: Entry, title: str, total: int) -> None:
    """Show an entry: its losses at the main level in the bar or, where there is none, all of it as a line."""
    if bar.disable:
        _tell(f"{title}: {entry_line(entry, total)}")
    else:
        main = {name.removesuffix("/main"): loss for name, loss in entry.losses.items() if name.endswith("/main")}
        bar.set_postfix_str(f"{losses_line(main)}, rate {entry.rate:.3g}")


def show_line(bar: "tqdm[int] | None", text: str) -> None:
    """Show a line, above the bar where there is one."""
    if bar is None or bar.disable:
        _tell(text)
    else:
        bar.write(text, file=sys.stderr)


def entry_line(entry: Entry, total: int) -> str:
    """Write an entry as `40/700 steps (5 %), <losses>, learning rate 0.029, 35.2 samples/s, 1 min 3 s left`."""
    return (
        f"{_share(entry.step, total, 'step')}, {losses_line(entry.losses)}, learning rate {entry.rate:.3g}, "
        f"{entry.samples_per_second:.3g} samples/s, {duration(entry.seconds_left)} left"
    )


def losses_line(losses: Mapping[str, float]) -> str:
    """Write losses as `<name> 0.1234, …`."""
    return ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items()) or "no loss (every step skipped)"
