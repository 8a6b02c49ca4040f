"""How this process was called: as a script of a checkout, or as a command of `esl-dist`.

`python launch/train.py …`, `esl-dist train …` and `python -m esl_dist train …` are one program. What it notes of
itself, and what it says a launcher should be given, name it as it was called.
"""

import sys
from pathlib import Path

COMMAND, PACKAGE = "esl-dist", "esl_dist"


def is_command() -> bool:
    """Say whether this process was called as a command of `esl-dist`, by that name or as a module."""
    called = Path(sys.argv[0])
    return called.name == COMMAND or (called.name == "__main__.py" and called.parent.name == PACKAGE)


def program() -> str:
    """Return the name of the program: `train` of `launch/train.py` and of `esl-dist train`."""
    if not is_command():
        return Path(sys.argv[0]).stem
    return sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else COMMAND


def for_a_launcher() -> list[str]:
    """Return the words with which a launcher starts the same: of the program, and those that it was given."""
    return ["-m", PACKAGE, *sys.argv[1:]] if is_command() else list(sys.argv)
