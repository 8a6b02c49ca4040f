"""run.json in a run's folder: how each of its starts was made, and how it ended.

    {"format": "esl-dist run", "format_version": 1, "starts": [{"command": […], "began": …, "state": …, …}, …]}

The main rank writes it whole when training begins and when it ends. So a start that was killed is left as `running`,
and the next one, which has the folder for itself, calls it `lost`. Nothing of the environment is noted, which may hold
secrets. The record is for people: one that is damaged or cannot be written costs a warning, and no training.

A process that must not wait for anything notes no end, either, and is called `lost` like one that was killed: at the
second Ctrl-C (`signals`), and where it lost another rank and its own main thread is stuck (`presence`).
"""

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esl_dist.command_line import ending
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json
from esl_dist.ranks.collectives import gather_texts, is_main, warn, world_size
from esl_dist.ranks.session import Ranks

RUN_RECORD = "run.json"
FORMAT, FORMAT_VERSION = "esl-dist run", 1
DAMAGED_SUFFIX = ".damaged"
STATES = ("running", "finished", "stopped", "interrupted", "failed", "lost")
CHECKOUT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 5.0


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        command: program and words, as they were given.
        began: when training began, ISO 8601 in UTC.
        host: the main rank's machine.
        processes: number of ranks.
        nodes: number of machines.
        devices: of each rank, in their order.
        precision: of forward passes.
        versions: by name of the package.
        commit: of the checkout the program lies in, with `-dirty` behind it if files differ; None: it is none.
        first_step: steps done before.
        state: `running`, `finished`, `stopped` (by a signal), `interrupted` (Ctrl-C), `failed`, or `lost`: it ended
            without a word.
        step: steps done at its end; None until then.
        ended: when, as `began`; None until then.
        exit_code: of the main rank; None until then.
        words: what the program said of its end.
    """

    command: list[str]
    began: str
    host: str
    processes: int
    nodes: int
    devices: list[str]
    precision: str
    versions: dict[str, str]
    commit: str | None
    first_step: int
    state: str = "running"
    step: int | None = None
    ended: str | None = None
    exit_code: int | None = None
    words: str = ""


class RunRecord:
    """The record of the start that this process is, on the main rank; on the others, and before it begins, of none."""

    def __init__(self) -> None:
        """Wait for the beginning."""
        self.step = 0
        self._file: Path | None = None
        self._starts: list[Start] = []

    def begin(self, run: Path, ranks: Ranks, first_step: int) -> None:
        """Note a start from `first_step` in the folder `run`; called on every rank."""
        own = f"{socket.gethostname()} {_device_name(ranks.device)}"
        places = [place.split(" ", 1) for place in gather_texts(own)]
        self.step = first_step
        if not is_main():
            return
        file = run / RUN_RECORD
        before = [replace(one, state="lost") if one.state == "running" else one for one in _read(file)]
        start = Start(
            command=[_as_unicode(word) for word in sys.argv],
            began=_now(),
            host=socket.gethostname(),
            processes=world_size(),
            nodes=len({host for host, _ in places}),
            devices=[device for _, device in places],
            precision=ranks.precision,
            versions=_versions(),
            commit=_commit(CHECKOUT),
            first_step=first_step,
        )
        self._file, self._starts = file, [*before, start]
        self._write()

    def end(self, error: BaseException | None) -> None:
        """Note how the start ended that was begun, if one was: with an error, or without."""
        if self._file is None:
            return
        end = ending(error)
        words = "" if error is None else next(iter(end.words.splitlines()), type(error).__name__)
        start = replace(
            self._starts[-1],
            state=end.state,
            step=self.step,
            ended=_now(),
            exit_code=end.code,
            words=_as_unicode(words),
        )
        self._starts = [*self._starts[:-1], start]
        self._write()

    def _write(self) -> None:
        assert self._file is not None
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "starts": [asdict(one) for one in self._starts]}
        try:
            write_json(self._file, content)
        except OSError as error:
            warn(f"{self._file}: cannot be written ({error.strerror}); how this start was made and ended is not noted")


@contextmanager
def run_record() -> Iterator[RunRecord]:
    """Note how a start ends that begins while the block runs."""
    record = RunRecord()
    try:
        yield record
    except BaseException as error:
        record.end(error)
        raise
    record.end(None)


def _read(file: Path) -> list[Start]:
    """Return the starts before this one; a damaged record is set aside with a warning."""
    try:
        return read_record(file) if os.path.lexists(file) else []
    except UserError as error:
        aside = file.with_name(file.name + DAMAGED_SUFFIX)
        try:
            file.replace(aside)
        except OSError:
            warn(f"{error}; it is begun anew")
        else:
            warn(f"{error}; it is begun anew, and what was there is {aside.name} now")
    return []


def read_record(file: Path) -> list[Start]:
    """Read a record as strictly as it is written.

    Raises:
        UserError: it is missing, or is no record of this version.
    """
    content = read_json(file)
    if not isinstance(content, dict) or (content.get("format"), content.get("format_version")) != (
        FORMAT,
        FORMAT_VERSION,
    ):
        raise UserError(f"{file}: no record of version {FORMAT_VERSION} of the starts of a run")
    starts = content.get("starts")
    if not isinstance(starts, list):
        raise UserError(f"{file}: starts: expected a list")
    return [_start_from(entry, f"{file}: starts[{number}]") for number, entry in enumerate(starts)]


def _start_from(entry: Any, place: str) -> Start:
    names = [item.name for item in fields(Start)]
    if not isinstance(entry, dict) or sorted(entry) != sorted(names):
        raise UserError(f"{place}: expected {', '.join(names)}")
    for name, is_right in _CHECKS.items():
        if not is_right(entry[name]):
            raise UserError(f"{place}.{name}: {str(entry[name])[:80]!r} is impossible")
    return Start(**entry)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "command": _are_texts,
    "began": _is_time,
    "host": _is_text,
    "processes": lambda value: _is_count(value, 1),
    "nodes": lambda value: _is_count(value, 1),
    "devices": _are_texts,
    "precision": _is_text,
    "versions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "commit": _or_none(_is_text),
    "first_step": _is_count,
    "state": lambda value: value in STATES,
    "step": _or_none(_is_count),
    "ended": _or_none(_is_time),
    "exit_code": _or_none(_is_count),
    "words": _is_text,
}


def _as_unicode(text: str) -> str:
    """Spell out what of a path is none, which JSON does not take."""
    return text.encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> dict[str, str]:
    try:
        own = version("esl-dist")
    except PackageNotFoundError:
        own = "not installed"
    versions = {
        "esl-dist": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "accelerate": version("accelerate"),
        "numpy": np.__version__,
    }
    return versions if torch.version.cuda is None else versions | {"cuda": torch.version.cuda}


def _commit(checkout: Path) -> str | None:
    """Return the commit of a checkout as 40 hexadecimal digits, with `-dirty` if tracked files differ from it."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), *words],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=GIT_SECONDS,
        # Reading must not write: another process may be at work in the checkout.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()
