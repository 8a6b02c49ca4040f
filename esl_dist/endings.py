"""How a program ends: what an error means, the exit codes, and the file in which a batch script reads it.

Launchers make codes of their own of those of several processes: torchrun and `accelerate launch` end with 1, `srun`
with the highest. So where the variable of the environment ESL_DIST_STATE names a file, every program says in it how it
is getting on, one key a line, for `sed`, `grep` and `jq`:

    {"format": "esl-dist state", "format_version": 1, "program": "train", "state": "failed", "exit_code": 2, …}

Any rank may write it, each whole, for the first may be the one that is lost. What is there stays, unless what comes
tells more: that all is done goes before what a rank says of itself, that before what follows of it, the loss of a rank,
and that before a signal which may come of one (`_weight`). So a rank notes its end before it tells the others. A file
of `running` whose job is over tells of one that was killed as a whole.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

from esl_dist import called, early
from esl_dist.checked import Content, one_of, read, read_content, whole_number
from esl_dist.environment import MOST_RANKS, RANK, start_id
from esl_dist.errors import LostRankError, StoppedError, UserError, memory_words
from esl_dist.files import write_json
from esl_dist.gpu_errors import defect_words, mistake_words
from esl_dist.machine import shortage

EXIT_DEFECT = 1
EXIT_CANNOT = 1
"""Doctor's, where it has told of a problem; a program that has nothing to print but an answer has it for no."""
EXIT_USER_ERROR = 2
EXIT_LOST_RANK = 3
EXIT_STOPPED = 75
"""Of sysexits.h's codes the one that says: try again later."""
EXIT_INTERRUPTED = early.EXIT_INTERRUPTED

STATE_FILE = early.STATE_FILE
FORMAT, FORMAT_VERSION = "esl-dist state", 1
STATES = ("running", "finished", "stopped", "interrupted", "failed")

NOTE_SECONDS = 5.0
"""For the note of a process that must not wait for a disk that does not answer."""


class Ending(NamedTuple):
    """How a program ends.

    Attributes:
        state: `finished`, `stopped` (by a signal), `interrupted` (Ctrl-C) or `failed`.
        code: the exit code.
        words: what there is to say, on its own lines; without the advice on settings.
        kind: the name of the exception.
        rank: whose end it is; None: this process's.
        step: steps of a training done by then; None: not known, or no training.
    """

    state: str
    code: int
    words: str
    kind: str = ""
    rank: int | None = None
    step: int | None = None

    def first_line(self) -> str:
        """Return the first line of the words, or the exception's name where there are none."""
        return next(iter(self.words.splitlines()), self.kind)

    def line(self) -> str:
        """Return what there is to say in one line; of a defect with the exception's name."""
        line = self.first_line()
        return f"{self.kind}: {line}" if self.code == EXIT_DEFECT and line != self.kind else line


def ending(error: BaseException | None) -> Ending:
    """Return how a program ends with an error, or without one."""
    kind = type(error).__name__
    match error:
        case None:
            return Ending("finished", 0, "")
        case StoppedError(interrupted=False):
            return Ending("stopped", EXIT_STOPPED, str(error), kind)
        case StoppedError() | KeyboardInterrupt():
            return Ending("interrupted", EXIT_INTERRUPTED, str(error), kind)
        case LostRankError():
            return Ending("failed", EXIT_LOST_RANK, str(error), kind)
        case UserError():
            return Ending("failed", EXIT_USER_ERROR, str(error), kind)
    words = memory_words(error) or shortage(error) or mistake_words(error)
    if words is None and isinstance(error, OSError) and error.filename is not None:
        words = f"{error.filename}: {error.strerror}"
    if words is None:
        return Ending("failed", EXIT_DEFECT, defect_words(error) or str(error), kind)
    return Ending("failed", EXIT_USER_ERROR, words, kind)


def cause(error: BaseException | None) -> Ending:
    """Return the ending that `error` tells of: that of the rank which ended first, where its loss is the error."""
    if isinstance(error, LostRankError) and isinstance(error.cause, Ending):
        return error.cause
    return ending(error)


def now() -> datetime:
    """Return the time to the millisecond, as the file holds it."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def time_with_zone(content: Content) -> str:
    """Read a time in ISO 8601 that says its time zone."""
    try:
        if datetime.fromisoformat(content.text()).tzinfo is not None:
            return content.text()
    except ValueError:
        pass
    content.refuse("a time in ISO 8601 with its time zone")


Time = Annotated[str, time_with_zone]
Code = Annotated[int, whole_number(0, 255)]


@dataclass(frozen=True)
class State:
    """How a program gets on, as the file says it.

    Attributes:
        program: its name without ending.
        state: `running`, `finished`, `stopped` (by a signal), `interrupted` (Ctrl-C) or `failed`.
        exit_code: what the end means (`EXIT_…`), whatever codes launchers make of it; None while it runs.
        step: steps of a training done at its end; None until then, and for other programs.
        words: what there is to say of the end, in one line.
        rank: whose words they are.
        start: what the ranks of this start alone have (`environment.start_id`); None: not known.
        began: when the first rank did, ISO 8601 in UTC; None: it had not when another one ended.
        ended: as `began`; None while it runs.
    """

    program: str
    state: Annotated[str, one_of(*STATES)]
    exit_code: Code | None
    step: int | None
    words: str
    rank: Annotated[int, whole_number(0, MOST_RANKS)]
    start: str | None
    began: Time | None
    ended: Time | None


@dataclass
class Program:
    """What this process notes of itself.

    Attributes:
        began: when.
        step: steps of a training done; None: it is none, or has not begun.
        records: further places where its end is noted.
        leaves_at_once: whether it is to end without what Python and libraries do at their end, which may wait without
            end: for kernels, or messages, of ranks that are gone.
    """

    began: datetime = field(default_factory=now)
    step: int | None = None
    records: list[Callable[[Ending], None]] = field(default_factory=list)
    leaves_at_once: bool = False


PROGRAM = Program()
"""There is one, as there is one process group."""


_noting = threading.Lock()


def begin() -> None:
    """Note that this program runs; called on every rank before what takes time or may fail."""
    PROGRAM.began, PROGRAM.step, PROGRAM.leaves_at_once = now(), None, False
    PROGRAM.records.clear()
    note_running()


def note_running() -> None:
    """Note that this program runs, with the steps that are saved: what counts if it is killed as a whole."""
    if own_rank() == 0:
        _note_state(Ending("running", 0, "", rank=0, step=PROGRAM.step))


def note_end(end: Ending) -> None:
    """Note how this program ends wherever it is noted; what was noted before and tells more stays."""
    end = end._replace(
        rank=own_rank() if end.rank is None else end.rank, step=PROGRAM.step if end.step is None else end.step
    )
    with _noting:
        # The disk of a record may not answer.
        for note in (_note_state, *PROGRAM.records):
            note(end)


def note_end_soon(end: Ending, seconds: float | None = None) -> None:
    """Do as `note_end`, and return after `seconds` (`NOTE_SECONDS`) though a disk does not answer."""
    within(NOTE_SECONDS if seconds is None else seconds, lambda: note_end(end))


def within(seconds: float, do: Callable[[], object]) -> None:
    """Return when `do` has returned, or after `seconds`, though it goes on then, in a thread."""
    thread = threading.Thread(target=do, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # No further thread can be started.
        do()
    else:
        thread.join(seconds)


def own_rank() -> int:
    """Return this process's rank, by what a launcher or SLURM set before the program began; 0 where it is no number."""
    said = next((os.environ[name] for name in (*RANK, "SLURM_PROCID") if name in os.environ), "0")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 8 else 0


def goes_before(new: Ending, state: str, exit_code: int | None) -> bool:
    """Say whether an ending tells more than what is noted as a state and a code."""
    return _weight(new.state, new.code) > _weight(state, exit_code)


def _weight(state: str, exit_code: int | None) -> int:
    if state in ("running", "finished"):
        return 0 if state == "running" else 4
    if exit_code == EXIT_LOST_RANK:
        return 1 if state == "stopped" else 2
    return 3


def _note_state(end: Ending) -> None:
    named, is_over = os.environ.get(STATE_FILE), end.state != "running"
    # Of several ranks the first says that all is done.
    if not named or (end.state == "finished" and end.rank != 0):
        return
    file, program = Path(named), as_unicode(called.program())
    began, before = _text(PROGRAM.began) if own_rank() == 0 else None, _state_in(file)
    if before is not None and before.program == program and _is_of_this_start(before):
        if before.ended is not None and not goes_before(end, before.state, before.exit_code):
            return
        if is_over:
            began = before.began
    state = State(
        program=program,
        state=end.state,
        exit_code=end.code if is_over else None,
        step=end.step,
        words=as_unicode(end.line()),
        rank=end.rank or 0,
        start=_own_start(),
        began=began,
        ended=_text(now()) if is_over else None,
    )
    try:
        write_json(file, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(state)}, 1, own_suffix())
    except OSError as error:
        _warn(f"{STATE_FILE}={named}: cannot be written ({error.strerror}); how this program ends is not noted there")


def _is_of_this_start(before: State) -> bool:
    start = _own_start()
    if start != before.start:
        return False
    if before.ended is None or datetime.fromisoformat(before.ended) >= PROGRAM.began:
        return True
    # A step may start one program after the other; but the first rank has yet to begin here, or began later.
    return start is not None and before.began is None


def _own_start() -> str | None:
    start = start_id()
    return None if start is None else as_unicode(start)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _state_in(file: Path) -> State | None:
    """Return what a file says; None where it says nothing, or what no version of the program wrote."""
    with suppress(UserError):
        return read_state(file)
    return None


def read_state(file: Path) -> State:
    """Read a state file as strictly as it is written.

    Raises:
        UserError: it is missing, or no such file.
    """
    content = read_content(file, "name another file, or start the program again")
    content.version_of(FORMAT, [FORMAT_VERSION])
    return read(content, State)


def own_suffix() -> str:
    """Return what only this process puts behind the name of a file that several may write at once."""
    return f".{socket.gethostname()}-{os.getpid()}"


def as_unicode(text: str) -> str:
    """Spell out what of a path is none, which JSON does not take."""
    return text.encode("utf-8", "backslashreplace").decode()


def _warn(text: str) -> None:
    # At once, and whatever has become of the streams.
    with suppress(OSError):
        os.write(2, f"warning: {text}\n".encode(errors="backslashreplace"))
