"""The help of a command: what it does, how it is typed, and its settings by group, a line each."""

import shutil
from collections.abc import Sequence
from textwrap import shorten

from esl_dist.called import COMMAND
from esl_dist.cli.commands import Command
from esl_dist.command_line import described
from esl_dist.config_files import describe, meaning_of_group
from esl_dist.files import shortened

WIDTHS = (80, 140)
"""Least and most columns that a line may have; where there is no terminal, it has the 100 in between."""

SETTING_COLUMNS = 38
LEAST_COLUMNS = 20


def help_of(name: str, command: Command, words: Sequence[str] = ()) -> str:
    """Return the help of a command; with words, the whole text of the settings whose names have one of them."""
    schema = command.settings()
    if chosen := [one for one in describe(schema) if any(word.partition("=")[0] in one[0] for word in words)]:
        return "\n".join(described(*one) for one in chosen)
    options = {
        "--config FILE": "YAML file with settings, or the name of a recipe",
        "--help WORD": "the whole text of the settings whose names have WORD in them",
        "key=value": "settings, which go before those of the file",
    }
    unknown = [f"no setting has {' or '.join(map(shortened, words))} in its name; all settings:"] if words else []
    parts = [
        *unknown,
        f"usage: {COMMAND} {name} [--help [WORD]] [--config FILE] [key=value ...]",
        command.summary,
        "\n".join(["examples:", *(f"  {COMMAND} {example}" for example in command.examples)]),
        "\n".join(f"  {option:15}{text}" for option, text in options.items()),
        *_groups(schema),
    ]
    return "\n\n".join(parts)


def _groups(schema: type) -> list[str]:
    """Return a text a group of settings: the required ones, those of no group, and then group by group."""
    groups: dict[str, list[str]] = {"required:": [], "settings:": []}
    for key, _, default, text in describe(schema):
        group = key.rpartition(".")[0]
        heading = f"{group}: {_shortened(meaning_of_group(schema, group), len(group) + 2)}" if group else "settings:"
        heading = "required:" if default == "required" else heading
        groups.setdefault(heading, []).append(_line(key, default, text))
    return ["\n".join([heading, *lines]) for heading, lines in groups.items() if lines]


def _line(key: str, default: str, text: str) -> str:
    # As YAML has them, so that they can be typed.
    value = {"required": "…", "True": "true", "False": "false"}.get(default, default)
    value = value.replace("'", "").replace(", ", ",") if value.startswith("[") else value
    setting = f"  {key}={value} ".ljust(SETTING_COLUMNS)
    return f"{setting} {_shortened(text, len(setting) + 1)}"


def _shortened(text: str, place: int) -> str:
    """Return the first sentence of a text as far as a line has room for it from a column on."""
    columns = min(max(shutil.get_terminal_size((100, 0)).columns, WIDTHS[0]), WIDTHS[1])
    sentence = " ".join(text.split()).partition(". ")[0].rstrip(".")
    return shorten(sentence, max(columns - place, LEAST_COLUMNS), placeholder=" …")
