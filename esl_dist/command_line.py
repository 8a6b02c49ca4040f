"""What every program does before and after its one function: read the configuration, turn mistakes into one line.

Exit codes: 0 done, 1 what doctor was asked about cannot run, 2 the user's mistake or too little memory (one message on
standard error), 3 another rank was lost, 75 stopped by SIGTERM or SIGUSR1 after saving (start it again), 130
interrupted with Ctrl-C (a training saves first). An end that nobody reads (`| head`) is none. Any other exception is a
defect of the program and keeps its traceback, with code 1.

What reads settings is imported where it is needed, so that the list of commands ends as a program does without it.

torchrun, and with it `accelerate launch`, gives every rank the name of a file for its error, in a folder for each
attempt to start the ranks. The first line of a summary that it prints is read from there; without, it says only that
there was an error.
"""

import difflib
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from esl_dist import early

# The codes are named here, too, as those of every program.
from esl_dist.endings import EXIT_DEFECT as EXIT_DEFECT
from esl_dist.endings import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from esl_dist.endings import EXIT_LOST_RANK as EXIT_LOST_RANK
from esl_dist.endings import EXIT_STOPPED as EXIT_STOPPED
from esl_dist.endings import EXIT_USER_ERROR as EXIT_USER_ERROR
from esl_dist.endings import PROGRAM, cause, ending, note_end
from esl_dist.environment import LOCAL_RANK, launch
from esl_dist.errors import EITHER_MEMORY, GPU_MEMORY, StoppedError, UserError, memory_words
from esl_dist.files import as_given, shortened
from esl_dist.recipes_by_name import recipe_file
from esl_dist.slurm import adopt_step
from esl_dist.stop_signals import keep_end, leave
from esl_dist.urls import is_url

Config = TypeVar("Config")

TAKING_MEMORY = (
    *("batch_size", "source.size", "target.size", "data.size", "size", "label_size"),
    *("network.architecture", "method.discriminator_channels", "loader.workers", "workers", "processes"),
)
"""Settings that decide how much memory a program takes, in the order in which lowering them helps."""

TAKING_NO_GPU = ("loader.workers", "workers", "processes")
RECOMPUTING = "checkpoint_activations"
"""The setting that pays memory with computing, where a program has it."""

WAIT_SECONDS = 1.0
"""How long a rank lets the first one of its machine go before it says a message itself."""

AS_ANOTHER = "as another rank of this machine"


def run_program(schema: type[Config], main: Callable[[Config], int | None], words: Sequence[str] | None = None) -> None:
    """Read `--config FILE` and `key=value` words against `schema`, call `main`, leave with an exit code.

    Args:
        schema: the settings of the program.
        main: does its work, and may return an exit code; None: 0.
        words: its command line; None: what stands behind the name of this process's script.
    """
    with as_programs_end(schema):
        from esl_dist.config_files import load_config

        file, overrides = _arguments(schema, sys.argv[1:] if words is None else words)
        adopt_step()
        finish(main(load_config(schema, file, overrides)) or 0)


@contextmanager
def as_programs_end(schema: type | None = None) -> Iterator[None]:
    """Print as every program does, and leave with its message and exit code where something is raised.

    Args:
        schema: settings that a message may give advice on; None: which program it is to be is open.
    """
    early.make_streams_robust()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _end(error, schema)
        raise


def finish(code: int = 0) -> None:
    """Note that all is done, and leave with an exit code; returns where this is 0, and Python may end by itself."""
    keep_end()
    sys.stdout.flush()
    note_end(ending(None)._replace(code=code))
    if code or PROGRAM.leaves_at_once:
        leave(code)


def _end(error: BaseException, schema: type | None) -> None:
    """Say and note how the program ends, and leave; returns where the error is a defect that is to be raised."""
    keep_end()
    note_end(cause(error))
    end = ending(error)
    if end.code != EXIT_USER_ERROR:
        _tell_launcher(end.line())
    if end.code == EXIT_DEFECT:
        if end.words != str(error):
            error.add_note(end.words)
        if PROGRAM.leaves_at_once:
            traceback.print_exception(error)
            leave(end.code)
        return
    words = end.words
    if memory_words(error) is not None and schema is not None:
        words += f"; {_memory_advice(schema, words)}"
    if isinstance(error, StoppedError):
        _say(f"{end.state}{_rank()}: {words}; the same command goes on from there")
    elif isinstance(error, KeyboardInterrupt):
        _say(f"interrupted{_rank()}; the same command goes on from what is saved")
    # A mistake is one of all ranks of a launcher, and said once.
    elif end.code != EXIT_USER_ERROR or is_mine_to_say(words):
        _say(f"error{_rank()}: {words}")
    leave(end.code)


def _memory_advice(schema: type, words: str) -> str:
    from esl_dist.config_values import settings_of

    keys, is_of_gpu = settings_of(schema), words.startswith(GPU_MEMORY)
    is_of_host = not is_of_gpu or words.startswith(EITHER_MEMORY)
    taking = [key for key in TAKING_MEMORY if key in keys and (is_of_host or key not in TAKING_NO_GPU)]
    advice = f"give less to {', '.join(taking)}" + (", or more to accumulate" if "accumulate" in keys else "")
    if is_of_gpu and "precision" in keys:
        advice += ", or choose precision=bf16"
    return advice + (f", or {RECOMPUTING}=true" if RECOMPUTING in keys else "")


def _arguments(schema: type, words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the file of `--config`, and the words `key=value`; `--help` ends the program."""
    if not {"-h", "--help"}.isdisjoint(words):
        print(_help(schema))
        finish()
        sys.exit(0)
    from esl_dist.config_values import COMMAND_LINE

    files, overrides, rest = list[str](), list[str](), iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--config":
            files.append(value or next(rest, ""))
            if not files[-1] or (not value and files[-1].startswith("-")):
                problem = "expected a file behind it; --help lists what may be given"
                raise UserError(f"{COMMAND_LINE}: argument --config: {problem}")
        elif equals and not word.startswith("-"):
            overrides.append(word)
        else:
            raise UserError(f"{COMMAND_LINE}: {_as_setting(word, words, schema)}")
    if len(files) > 1:
        raise UserError(f"{COMMAND_LINE}: --config is given {len(files)} times; expected one file")
    if files and is_url(files[0]):
        raise UserError(f"{COMMAND_LINE}: --config: {as_given(files[0])}: a URL; expected a file on this machine")
    return recipe_file(files[0]) if files else None, overrides


def _help(schema: type) -> str:
    from esl_dist.config_files import describe

    settings = "\n".join(described(*setting) for setting in describe(schema))
    return (
        f"usage: {Path(sys.argv[0]).name} [--help] [--config FILE] [key=value ...]\n\n{schema.__doc__}\n\n"
        "  --config FILE  YAML file with settings, or the name of a recipe\n"
        "  key=value      settings that go before those of the file\n\n"
        f"settings (type; default):\n{settings}"
    )


def described(key: str, kind: str, default: str, text: str) -> str:
    """Return what there is to say of a setting, as `config_files.describe` gives it, in two lines."""
    return f"  {key} ({kind}; {default})\n      {text}"


def _as_setting(word: str, words: Sequence[str], schema: type) -> str:
    """Say how a word that is no `key=value` would be written: `--steps 20`, `--steps=20`, `steps 20` as `steps=20`."""
    from esl_dist.config_values import settings_of

    known = settings_of(schema)
    name, _, value = word.lstrip("-").partition("=")
    name = name if name in known else name.replace("-", "_")
    problem = f"{shortened(word)} is not of the form key=value"
    if name not in known:
        problem = f"unrecognized arguments: {as_given(word)}" if word.startswith("-") else problem
        near = difflib.get_close_matches(word, ["--help", "--config"], 1, cutoff=0.7)
        return f"{problem}; {f'{near[0]} is near, and ' if near else ''}--help lists all settings"
    behind = next((other for other in words[words.index(word) + 1 :] if other != "="), "=")
    value = value or ("…" if "=" in behind or behind.startswith("--") else behind)
    return f"{problem}; write {name}={as_given(value)}"


def _say(text: str) -> None:
    # At once: two ranks may share the stream, and print may write the end of a line apart.
    sys.stderr.write(f"{early.line_end()}{text}\n")
    sys.stderr.flush()


def _rank() -> str:
    """Name the rank where the launcher started several; known from its environment before any set-up."""
    try:
        launched = launch()
    except UserError:
        return ""
    return f" (rank {launched.rank})" if launched.world_size > 1 else ""


def is_mine_to_say(text: str) -> bool:
    """Say whether this rank is the one on its machine to say a message, and write it where its launcher looks for it.

    That is the first rank, or who has the message alone.
    """
    file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE") or os.devnull)
    attempt = file.parent.parent
    if not attempt.name.startswith("attempt_") or not attempt.is_dir():
        # No torchrun.
        return True
    is_mine = _claimed(attempt / f"said-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}")
    _tell_launcher(text if is_mine else AS_ANOTHER)
    return is_mine


def _tell_launcher(text: str) -> None:
    """Write what a launcher says of this rank in its summary."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        # What is there already is an earlier error.
        with suppress(OSError), open(file, "x", encoding="utf-8", errors="backslashreplace") as opened:
            json.dump({"message": message}, opened)


def _claimed(claim: Path) -> bool:
    is_first_rank = next((os.environ[name] for name in LOCAL_RANK if name in os.environ), "0") == "0"
    deadline = time.monotonic() + (0.0 if is_first_rank else WAIT_SECONDS)
    while time.monotonic() < deadline and not claim.exists():
        time.sleep(WAIT_SECONDS / 20)
    try:
        claim.touch(exist_ok=False)
    except OSError as error:
        # A message is said twice rather than never.
        return not isinstance(error, FileExistsError)
    return True
