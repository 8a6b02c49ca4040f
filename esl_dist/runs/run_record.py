"""run.json in a run's folder: how each of its starts was made, and how it ended.

    {"format": "esl-dist run", "format_version": 1, "starts": [{"command": […], "began": …, "state": …, …}, …]}

The main rank writes it whole when training begins. How it ends is noted as in the file for batch scripts
(`esl_dist.endings`): by the rank that ends first, or by one that lost it. So only a start that was killed as a whole is
left as `running`, and the next one, which has the folder for itself, calls it `lost`. Nothing of the environment is
noted, which may hold secrets. The record is for people: one that is damaged or cannot be written costs a warning, and
no training.
"""

import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Self

import torch

from esl_dist.checked import Content, one_of, read, read_content, whole_number
from esl_dist.endings import (
    EXIT_DEFECT,
    EXIT_USER_ERROR,
    PROGRAM,
    STATES,
    Ending,
    Time,
    as_unicode,
    cause,
    goes_before,
    note_end,
    note_running,
    now,
    own_rank,
    own_suffix,
)
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.ranks.collectives import gather_texts, is_main, warn, world_size
from esl_dist.ranks.session import Ranks
from esl_dist.urls import without_secrets

RUN_RECORD = "run.json"
FORMAT, FORMAT_VERSION = "esl-dist run", 1
DAMAGED_SUFFIX = ".damaged"
CHECKOUT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 5.0


AtLeastOne = Annotated[int, whole_number(1)]


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
        exit_code: of the rank that ended first; None until then.
        words: what it said of its end.
    """

    command: list[str]
    began: Time
    host: str
    processes: AtLeastOne
    nodes: AtLeastOne
    devices: list[str]
    precision: str
    versions: dict[str, str]
    commit: str | None
    first_step: int
    state: Annotated[str, one_of(*STATES, "lost")] = "running"
    step: int | None = None
    ended: Time | None = None
    exit_code: int | None = None
    words: str = ""


class RunRecord:
    """The record of the start that this process is a rank of; before it begins, of none.

    As a context, it notes how a start ends that begins while the block runs.

    Attributes:
        step: steps done.
    """

    def __init__(self) -> None:
        """Wait for the beginning."""
        self._file: Path | None = None
        self._starts: list[Start] = []

    @property
    def step(self) -> int:
        """Steps done, which the end is noted with."""
        return PROGRAM.step or 0

    @step.setter
    def step(self, step: int) -> None:
        PROGRAM.step = step

    def begin(self, run: Path, ranks: Ranks, first_step: int) -> None:
        """Note a start from `first_step` in the folder `run`; called on every rank."""
        kind = ranks.device.type
        device = torch.cuda.get_device_name(ranks.device) if kind == "cuda" else kind
        places = [place.split(" ", 1) for place in gather_texts(f"{socket.gethostname()} {device}")]
        self.step, self._file = first_step, run / RUN_RECORD
        if not is_main():
            return
        note_running()
        before = [replace(one, state="lost") if one.state == "running" else one for one in _read(self._file)]
        start = Start(
            command=[without_secrets(as_unicode(word)) for word in sys.argv],
            began=_now(),
            host=socket.gethostname(),
            processes=world_size(),
            nodes=len({host for host, _ in places}),
            devices=[device for _, device in places],
            precision=ranks.precision,
            versions=versions(),
            commit=_commit(CHECKOUT),
            first_step=first_step,
        )
        self._starts = [*before, start]
        self._write(self._starts)

    def __enter__(self) -> Self:
        """Wait for the beginning."""
        PROGRAM.records.append(self._note)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Note how the start ended that was begun, if one was: with an error, or without."""
        note_end(cause(error))
        PROGRAM.records.remove(self._note)

    def _note(self, end: Ending) -> None:
        if self._file is None or (end.state == "finished" and own_rank() != 0):
            return
        try:
            starts = read_record(self._file)
        except UserError:
            starts = self._starts
        # That of this start is the last one: it has the folder for itself.
        if not starts or not goes_before(end, starts[-1].state, starts[-1].exit_code):
            return
        is_of_one_rank = end.rank and end.code in (EXIT_DEFECT, EXIT_USER_ERROR)
        words = as_unicode(f"rank {end.rank} ended: {end.first_line()}" if is_of_one_rank else end.first_line())
        ended = replace(starts[-1], state=end.state, step=end.step, ended=_now(), exit_code=end.code, words=words)
        self._write([*starts[:-1], ended])

    def _write(self, starts: list[Start]) -> None:
        assert self._file is not None
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "starts": [asdict(one) for one in starts]}
        try:
            write_json(self._file, content, 1, own_suffix())
        except OSError as error:
            warn(f"{self._file}: cannot be written ({error.strerror}); how this start was made and ended is not noted")


def _read(file: Path) -> list[Start]:
    """Return the starts before this one; a damaged record is set aside with a warning."""
    try:
        return read_record(file) if os.path.lexists(file) else []
    except UserError as error:
        aside, fate = file.with_name(file.name + DAMAGED_SUFFIX), "it is begun anew"
        with suppress(OSError):
            file.replace(aside)
            fate = f"{fate}, and what was there is {aside.name} now"
        warn(f"{error}; {fate}")
    return []


def read_record(file: Path) -> list[Start]:
    """Read a record as strictly as it is written.

    Raises:
        UserError: it is missing, or is no record of this version.
    """
    content = read_content(file, "put back a whole record")
    content.version_of(FORMAT, [FORMAT_VERSION])
    return [_start_from(entry) for entry in content.at("starts").entries()]


def _start_from(content: Content) -> Start:
    names = [item.name for item in fields(Start)]
    # All of them, for the record is written anew with what was read.
    if not isinstance(content.value, dict) or content.value.keys() != set(names):
        content.refuse(f"a mapping of {', '.join(names)}")
    return read(content, Start)


def _now() -> str:
    return now().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of this program and of what its results depend on, by name."""
    try:
        own = version("esl-dist")
    except PackageNotFoundError:
        own = "not installed"
    found = {"esl-dist": own, "python": platform.python_version(), "torch": str(torch.__version__)}
    found |= {package: version(package) for package in ("accelerate", "numpy")}
    return found if torch.version.cuda is None else found | {"cuda": torch.version.cuda}


def _commit(checkout: Path) -> str | None:
    """Return the commit of a checkout as 40 hexadecimal digits, with `-dirty` if tracked files differ from it."""
    if not (checkout / ".git").exists():
        return None
    words = ["git", "-C", str(checkout), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    # Reading must not write: another process may be at work in the checkout.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(words, capture_output=True, check=True, timeout=GIT_SECONDS, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    header, *others = done.stdout.decode(errors="replace").splitlines()
    commit = header.removeprefix("# branch.oid ")
    if commit == "(initial)":
        return None
    return commit if all(line.startswith("#") for line in others) else f"{commit}-dirty"
