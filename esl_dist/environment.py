"""What launchers say in variables of the environment: read in one place, of the right type and in range, or refused.

torch and Accelerate turn such text into numbers where they need them, with a traceback for `WORLD_SIZE=abc`, and take a
rank beyond the last or an unknown precision without a word.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from esl_dist.errors import UserError
from esl_dist.files import as_given

MOST_RANKS = 2**20
YES, NO = ("true", "1", "yes", "on", "y", "t"), ("false", "0", "no", "off", "n", "f")
"""As Accelerate takes them."""

# As Accelerate looks for them: torchrun's, then those of MPI's launchers.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
LOCAL_WORLD_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this one is, in the whole job, and how many of them are on this machine."""

    rank: int
    world_size: int
    local_world_size: int


def launch() -> Launch:
    """Return what the launcher says about this process; without one, it is the only process.

    Raises:
        UserError: a variable that is no number or out of range, or a rank among nobody knows how many.
    """
    world_size = first_number(WORLD_SIZE, 1, MOST_RANKS)
    rank = first_number(RANK, 0, (world_size or MOST_RANKS) - 1)
    local_world_size = first_number(LOCAL_WORLD_SIZE, 1, MOST_RANKS)
    # Some launchers say -1 where there is none.
    first_number(LOCAL_RANK, -1, (local_world_size or MOST_RANKS) - 1)
    if world_size is not None:
        return Launch(rank or 0, world_size, min(local_world_size or 1, world_size))
    # A rank but the first would train alone, or wait for nobody.
    for variable in (*RANK, *LOCAL_RANK):
        if (number := whole_number(variable, -1, MOST_RANKS) or 0) > 0:
            raise UserError(
                f"{variable}={number} is impossible: WORLD_SIZE, which says how many processes there are, is not set; "
                f"start them with a launcher such as torchrun, or unset {variable}"
            )
    return Launch(0, 1, 1)


def is_alone() -> bool:
    """Return whether this is the only process, which may refuse at once what it does not find.

    Ranks of which some do not find a file have to meet before they say so: one that had ended would be waited for.
    """
    return launch().world_size == 1


def whole_number(variable: str, least: int, most: int) -> int | None:
    """Return a variable's number; None where it is not set.

    Raises:
        UserError: it is none, or out of range.
    """
    if (text := os.environ.get(variable)) is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None or not least <= int(text) <= most:
        raise _impossible(variable, text, f"a number from {least} to {most}")
    return int(text)


def first_number(variables: Sequence[str], least: int, most: int) -> int | None:
    """Return the number of the first of the variables that is set; None where none is.

    Raises:
        UserError: it is none, or out of range.
    """
    numbers = (whole_number(variable, least, most) for variable in variables)
    return next((number for number in numbers if number is not None), None)


def started_by_torchrun() -> bool:
    """Return whether torchrun, or a launcher that uses it, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def start_id() -> str | None:
    """Return a name that all ranks of one start have, and hardly another start; None where no launcher gives one."""
    step, run = os.environ.get("SLURM_STEP_ID"), os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # So torchrun calls each run that was given no name.
    if step is None and run == "none":
        return None
    others = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return "/".join([*(os.environ.get(name, "0") for name in others), step or "", run])


def flag(variable: str) -> bool:
    """Return whether a variable says yes; where it is not set or empty, it does not.

    Raises:
        UserError: neither yes nor no.
    """
    text = os.environ.get(variable) or "false"
    if text.lower() not in (*YES, *NO):
        raise _impossible(variable, text, "true or false")
    return text.lower() in YES


def choice(variable: str, choices: Sequence[str]) -> str:
    """Return what a variable says, in lower case; where it is not set, the first of the choices.

    Raises:
        UserError: none of them.
    """
    text = os.environ.get(variable, choices[0])
    if text.lower() not in choices:
        raise _impossible(variable, text, f"one of {', '.join(choices)}")
    return text.lower()


def _impossible(variable: str, text: str, expected: str) -> UserError:
    return UserError(
        f"{variable}={as_given(text)} is impossible: expected {expected}; it is a variable of the environment, which a "
        "launcher sets: correct it, or unset it"
    )
