"""What was looked at and found: lines of `ok`, `note` or `problem`, and one that sums them up."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from esl_dist.errors import UserError

Level = Literal["ok", "note", "problem"]

COLORS: dict[Level, str] = {"ok": "\033[32m", "note": "\033[33m", "problem": "\033[1;31m"}
PLAIN = "\033[0m"
"""ANSI's codes: green, yellow, bold red; and as before."""

LEVEL_WIDTH = max(map(len, COLORS))
SUBJECT_WIDTH = 14


class Finding(NamedTuple):
    """A line.

    Attributes:
        level: `ok`; `note`: worth knowing; `problem`: a program would not run, or not to its end.
        subject: what was looked at.
        words: what there is and, unless that is ok, what to do.
    """

    level: Level
    subject: str
    words: str


def looked_at(subject: str, look: Callable[[], str | Finding]) -> Finding:
    """Return what `look` finds: its words as `ok`, its own finding, or as a problem what it refuses."""
    try:
        found = look()
    except UserError as error:
        return Finding("problem", subject, str(error))
    return found if isinstance(found, Finding) else Finding("ok", subject, found)


def refused(subject: str, checks: Iterable[Callable[[], object]], words: str) -> list[Finding]:
    """Return a problem for each check that refuses something, in its words; `words` as `ok` where none does."""
    found = [looked_at(subject, lambda check=check: str(check())) for check in checks]  # type: ignore[misc]
    return problems_of(found) or [Finding("ok", subject, words)]


def problems_of(findings: Iterable[Finding]) -> list[Finding]:
    """Return the problems among findings."""
    return [one for one in findings if one.level == "problem"]


def table(title: str, findings: Iterable[Finding], is_colored: bool) -> str:
    """Lay out findings below a title, a line each."""
    lines = [title]
    for level, subject, words in findings:
        shown = f"{level:<{LEVEL_WIDTH}}"
        shown = f"{COLORS[level]}{shown}{PLAIN}" if is_colored else shown
        # One line each, for grep.
        lines.append(f"  {shown}  {subject:<{SUBJECT_WIDTH}}  {' '.join(words.split())}")
    return "\n".join(lines)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the line that sums up."""
    count = len(problems_of(findings))
    return f"cannot run: {count} problem{'s' if count > 1 else ''}" if count else "can run"
