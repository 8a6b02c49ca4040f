"""How two sides of a row are measured: in turn, in one run, medians of both, and equal results first.

A row has two sides: the project's own, and a plain one, which is the same work written out in the obvious manner. They
take turns, each first as often as the other, so that a machine that gets slower or warmer does so for both. A row
stands only for results that are equal to a stated bound.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from esl_dist.reporting.progress import progress

if TYPE_CHECKING:
    # Processes that a part starts import the program, which imports this: they need not wait for torch.
    from torch import Tensor

Measure = Callable[[], float]
"""Does the work of a side once and returns what it took, as a rule in seconds."""


class UnequalError(Exception):
    """The two sides of a row have other results: there is nothing to compare."""


@dataclass(frozen=True)
class Row:
    """One row of `results.json`.

    Attributes:
        name: what is measured.
        ours: median of the project's side; None, as `plain` and `ratio`: not measured, the name says why.
        plain: median of the plain side.
        unit: of both; what is counted a second is better where it is more, all else where it is less.
        ratio: how many times better ours is: above 1 it is the better one.
        goal: least ratio that is aimed at; None: none is set.
    """

    name: str
    ours: float | None
    plain: float | None
    unit: str
    ratio: float | None
    goal: float | None


def compared(name: str, sides: tuple[float, float], unit: str, goal: float | None) -> Row:
    """Return the row of two measured sides, ours first."""
    ours, plain = sides
    return Row(name, ours, plain, unit, ours / plain if unit.endswith("/s") else plain / ours, goal)


def timed(name: str, ours: Measure, plain: Measure, times: int, goal: float | None) -> Row:
    """Return the row of two works that are measured in seconds; see `medians_in_turn`."""
    return compared(name, medians_in_turn(name, ours, plain, times), "s", goal)


def medians_in_turn(name: str, ours: Measure, plain: Measure, times: int) -> tuple[float, float]:
    """Measure both sides so many times in turn, after once each that does not count; returns their medians.

    What is shown of the progress has the title `name`.
    """
    found: dict[Measure, list[float]] = {ours: [], plain: []}
    for number in progress(range(1 + times), 1 + times, name, unit="round"):
        # The first of a round is the other one's successor: neither is always the one that comes second.
        for side in (ours, plain) if number % 2 == 0 else (plain, ours):
            found[side].append(side())
    return median(found[ours][1:]), median(found[plain][1:])


def seconds(work: Callable[[], object]) -> Measure:
    """Return a work as a side that is measured by the clock."""
    return _by(time.perf_counter, work)


def processor_seconds(work: Callable[[], object]) -> Measure:
    """Return a work of this process alone as a side measured in processor time, which hardly hangs on other work."""
    return _by(time.process_time, work)


def _by(clock: Callable[[], float], work: Callable[[], object]) -> Measure:
    def measure() -> float:
        begin = clock()
        work()
        return clock() - begin

    return measure


def require_same(what: str, ours: object, plain: object) -> None:
    """Make sure that both sides have one result, to the bit.

    Raises:
        UnequalError: they have not.
    """
    if ours != plain:
        raise UnequalError(f"{what}: ours and the plain one are not the same")


def require_close(what: str, ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], bound: float) -> None:
    """Make sure that tensors of the same names differ by at most `bound`, as a share of each one's largest value.

    Raises:
        UnequalError: they differ by more, or have other names; it names the worst.
    """
    require_same(f"{what}: names of tensors", ours.keys(), plain.keys())
    apart = {name: _share_apart(ours[name], plain[name]) for name in plain}
    worst = max(apart, key=lambda name: apart[name])
    if apart[worst] > bound:
        raise UnequalError(f"{what}: {worst} differs by {apart[worst]:.2g} of its largest value, more than {bound:g}")


def _share_apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    largest = max(float(other.abs().max()), sys.float_info.min)
    apart = float((one.double() - other.double()).abs().max()) / largest
    return math.inf if math.isnan(apart) else apart


def peak_bytes(work: Callable[[], object]) -> float:
    """Do a work and return how many bytes of resident memory it took at most beyond those there were (Linux, glibc)."""
    # What was freed before is taken again unseen unless it goes back to the system.
    ctypes.CDLL(None).malloc_trim(0)
    # Sets the highest so far to the present (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * float(lines[key].removesuffix("kB"))
