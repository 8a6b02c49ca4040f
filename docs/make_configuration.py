"""Write docs/configuration.md from the settings' own descriptions: `python docs/make_configuration.py`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from esl_dist import config
from esl_dist.config_files import describe

PROGRAMS = {
    "pack": config.Prepare,
    "train": config.Train,
    "pseudo-label": config.PseudoLabel,
    "evaluate": config.Evaluate,
    "predict": config.Predict,
    "export": config.Export,
    "report": config.Report,
    "doctor": config.Doctor,
    "demo": config.Demo,
}


class Task(NamedTuple):
    """A heading of the page.

    Attributes:
        title: of the heading.
        programs: whose settings it takes.
        names: the first parts of the names of those that it takes; empty: all that no task before it takes.
    """

    title: str
    programs: str
    names: str = ""


USERS = "pseudo-label evaluate predict export"

TASKS = (
    Task("Pack a data set", "pack"),
    Task("Train: data", "train", "source target pseudo_labels class_set batch_size loader cache"),
    Task("Train: network", "train", "network"),
    Task("Train: method", "train", "method"),
    Task("Train: optimiser and schedule", "train", "optimizer"),
    Task("Train: precision, memory and speed", "train", "precision compile checkpoint_activations accumulate"),
    Task("Train: watching", "train", "log_every pictures_every pictures_of validation validate_every trackers"),
    Task("Train: the run, its length, what it saves", "train"),
    Task(
        "Use a network: which one, and how it sees pictures",
        USERS,
        "checkpoint class_set classes_from as_packed domain precision workers cache timeout_minutes",
    ),
    Task("Label the target", "pseudo-label"),
    Task("Score", "evaluate"),
    Task("Predict", "predict"),
    Task("Export", "export"),
    Task("Report", "report"),
    Task("Look at the machine", "doctor"),
    Task("Demonstrate", "demo"),
)
"""In the order of the page. Each program has a last one without names."""

OPENING = """# Configuration reference

Every setting, by what it is for. Made by `python docs/make_configuration.py` from the texts in `esl_dist/config*.py`;
change them there.

Every program takes `--config FILE` (YAML, only what differs from the defaults) and any number of `key=value` words,
which go before the file. `--help` prints the settings of a program.

- A number outside its bounds, of another type, or spelled so that YAML and people read it differently (010 is 8 in
  YAML, 1:30 is 90) is refused. The bounds are far beyond what published trainings use; whether a value fits the
  machine is looked at when it is used.
- A text is taken as it is written: a run named 0001 or `no` has that name. It is at most 4095 bytes without control
  characters and, but for `target.path` and `validation.path`, not empty.
- Of a setting that stands twice among the words, the last counts, so that a script's words can be changed behind them.
- `key=` with nothing behind it makes a setting null that may be null, and undoes a `target.path` or
  `validation.path` of the file. Others need a value.
- A file is a regular one (each process reads it, and a pipe can be read once) in UTF-8, without keys that stand twice
  and without YAML tags. `&name` and `*name` work.
- `${other.setting}` and `${oc.env:VARIABLE}` stand for another setting and a variable of the environment. What they
  give is written into the run's config.yaml and may be in messages: keep secrets out of it. What a run has saved
  holds no references.
"""


class Row(NamedTuple):
    """A setting as the page tells it, as `describe` has it."""

    key: str
    kind: str
    default: str
    meaning: str


def reference() -> str:
    """Return the page: the programs, then a table of settings for each task."""
    parts = [OPENING, "## Programs", "", *_programs(), ""]
    for task, rows in settings_by_task().items():
        # Whose settings they are is said where that is not the same for all.
        columns = ["setting", "type", "default", "meaning", *(["of"] if len(task.programs.split()) > 1 else [])]
        parts += [f"## {task.title}", "", _line(columns), _line(["---"] * len(columns))]
        parts += [_line(_cells(row, programs)[: len(columns)]) for row, programs in rows.items()]
        parts.append("")
    return "\n".join(parts)


def settings_by_task() -> dict[Task, dict[Row, list[str]]]:
    """Return the settings of each task that has any, in the order of their definition, and which programs have each.

    Settings of one name that programs define otherwise stand together.
    """
    found: dict[Task, dict[Row, list[str]]] = {task: {} for task in TASKS}
    for program, schema in PROGRAMS.items():
        for row in map(Row._make, describe(schema)):
            found[_task_of(program, row.key)].setdefault(row, []).append(program)
    return {task: _by_name(rows) for task, rows in found.items() if rows}


def _by_name(rows: dict[Row, list[str]]) -> dict[Row, list[str]]:
    names = [row.key for row in rows]
    return dict(sorted(rows.items(), key=lambda item: names.index(item[0].key)))


def _task_of(program: str, key: str) -> Task:
    first = key.partition(".")[0]
    return next(
        task for task in TASKS if program in task.programs.split() and (not task.names or first in task.names.split())
    )


def _programs() -> Iterator[str]:
    yield _line(["`esl-dist …`", "what it does"])
    yield _line(["---", "---"])
    for name, schema in PROGRAMS.items():
        yield _line([f"`{name}`", (schema.__doc__ or "").partition(": ")[2]])


def _cells(row: Row, programs: Iterable[str]) -> list[str]:
    default = "**required**" if row.default == "required" else f"`{row.default}`"
    return [f"`{row.key}`", row.kind, default, row.meaning, ", ".join(programs)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(reference(), encoding="utf-8")
