"""How this process was called: as a script of a checkout, or as a command of `esl-dist`.

`python launch/train.py …`, `esl-dist train …` and `python -m esl_dist train …` are one program. What it notes of
itself, and what it says a launcher should be given, name it as it was called.
"""

import sys
from pathlib import Path

COMMAND, PACKAGE = "esl-dist", "esl_dist"

NAMED_OTHERWISE = {"pack": "prepare"}
"""Commands whose programs, and scripts, do not have their names."""


def is_command() -> bool:
    """Say whether this process was called as a command of `esl-dist`, by that name or as a module."""
    called = Path(sys.argv[0])
    return called.name == COMMAND or (called.name == "__main__.py" and called.parent.name == PACKAGE)


def program() -> str:
    """Return the name of the program: `prepare` of `shards/prepare.py` and of `esl-dist pack`.

    That of the command itself, where no program is asked for.
    """
    if not is_command():
        return Path(sys.argv[0]).stem
    command = next(iter(sys.argv[1:]), "-")
    return COMMAND if command.startswith("-") else NAMED_OTHERWISE.get(command, command.replace("-", "_"))


def for_a_launcher() -> list[str]:
    """Return the words with which a launcher starts the same: of the program, and those that it was given."""
    return ["-m", PACKAGE, *sys.argv[1:]] if is_command() else list(sys.argv)
