"""What a shell completes: settings, values where a setting has choices, and recipes; click asks, and prints it.

bash cuts words at `=`, so that `precision=b` comes as `precision`, `=` and `b`, and only `b` is to be completed; other
shells give and take it whole. Settings of groups come like folders, a level at a time: `so` becomes `source.`, and this
`source.path=`. Of a list, the last element is completed. None of these ends a word, so the scripts below put no blank
behind them, which click's own would.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import get_args, get_origin

from click import Group
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from esl_dist.adaptation.catalogue import METHODS
from esl_dist.cli.commands import Command
from esl_dist.config_values import FAR, FOLDER, LOCAL, Setting, settings_of
from esl_dist.errors import UserError
from esl_dist.recipes_by_name import descriptions, recipes

OPTIONS = CONFIG, HELP = "--config", "--help"

NAMED: dict[str, Callable[[], Iterable[str]]] = {
    CONFIG: recipes,
    "recipe": recipes,
    "dataset": descriptions,
    "classes_from": descriptions,
    "method.name": lambda: METHODS,
}
"""What has names that its bounds do not tell."""

Shell = type[ShellComplete]


def completed(command: Command, before: Sequence[str], word: str) -> list[CompletionItem]:
    """Return what a word of a command may become.

    Args:
        command: whose word it is.
        before: the words between the command's name and this one, as the shell cuts them.
        word: what of it is typed; click makes nothing of a lone `=`.
    """
    programs = command.programs()
    asked = [programs.get(one, next(iter(programs.values()))) for one in before[:1] if programs]
    settings = {key: one for schema in (*asked, command.settings()) for key, one in settings_of(schema).items()}
    last = next((one for one in reversed(before) if one != "="), "")
    if last == CONFIG or last in settings:
        return _values(settings, last, word)
    key, equals, value = word.partition("=")
    if equals:
        return [CompletionItem(f"{key}={item.value}", item.type) for item in _values(settings, key, value)]
    given = {one.partition("=")[0] for one in before}
    named = () if before else (name for name in programs if name.startswith(word))
    items = [CompletionItem(part) for part in (*named, *_next_parts((*settings, *OPTIONS), given, word))]
    return items if items or command.listed is None else [CompletionItem(word, "file")]


def _next_parts(names: Iterable[str], given: Collection[str], word: str) -> list[str]:
    """Return what a word may be followed to: the name of a setting, or of the next group of them."""
    parts = dict[str, None]()
    for name in names:
        if name.startswith(word) and name not in given:
            group, dot, _ = name[len(word) :].partition(".")
            parts[name if name in OPTIONS else f"{word}{group}." if dot else f"{name}="] = None
    return list(parts)


def _values(settings: Mapping[str, Setting], key: str, value: str) -> list[CompletionItem]:
    """Return what a value may become: one of its choices, or else a place, which the shell completes itself."""
    if key != CONFIG and key not in settings:
        return []
    kind, bounds = (str, (LOCAL,)) if key == CONFIG else (settings[key].kind, settings[key].bounds)
    choices = ("true", "false") if kind is bool else [choice for bound in bounds for choice in bound.choices]
    if any(get_origin(one) is list for one in (kind, *get_args(kind))):
        return [CompletionItem(text) for text in _lists(choices, value)]
    named: Iterable[str] = NAMED[key]() if key in NAMED else choices
    items = [CompletionItem(choice) for choice in named if choice.startswith(value)]
    is_place = not {FOLDER, FAR, LOCAL}.isdisjoint(bounds)
    return items if items or not is_place else [CompletionItem(value, "dir" if FOLDER in bounds else "file")]


def _lists(choices: Iterable[str], value: str) -> list[str]:
    """Return what a list may become, `[`, a choice or several, and `]`, by a further one at its end."""
    *given, last = value.removeprefix("[").split(",")
    before = "".join(f"{one}," for one in given)
    blanks = last[: len(last) - len(last.lstrip())]
    others = [choice for choice in choices if choice not in map(str.strip, given)]
    return [f"[{before}{blanks}{choice}" for choice in others if choice.startswith(last.lstrip())]


def changed(shell: Shell, changes: Mapping[str, str]) -> Shell:
    """Return a shell's completion with changes to the script that click has for it.

    Args:
        shell: click's.
        changes: text that is in the script → what is to be in its place.

    Raises:
        UserError: there is no such text, for click is another version than those that are known.
    """
    template = shell.source_template
    for before, after in changes.items():
        if before not in template:
            raise UserError(
                f"completion {shell.name}: click {version('click')} has a script without {before!r}, and what comes of "
                "it is not known; install click 8.1 to 8.5"
            )
        template = template.replace(before, after)
    return type(shell.__name__, (shell,), {"source_template": template})


SHELLS: dict[str, tuple[Shell, dict[str, str]]] = {
    "bash": (
        BashComplete,
        {
            "COMPREPLY+=($value)": (
                'COMPREPLY+=("$value"); [[ $value == *[=.] || $value == *"["* ]] && compopt -o nospace'
            )
        },
    ),
    "zsh": (
        ZshComplete,
        {
            "compadd -U -V unsorted -a": "compadd -U -V unsorted -S '' -a",
            "_path_files": "compset -P 1 '*='; _path_files",
        },
    ),
    # It puts no blank behind what ends with = or a point. A list has commas of its own; a place follows a setting.
    "fish": (
        FishComplete,
        {
            'set -l metadata (string split "," $completion);': (
                'set -l metadata (string split -m 1 "," $completion); '
                "set -l key (string match -r '^[^=]*=' -- $metadata[2]; or echo); "
                "set -l place (string replace -r '^[^=]*=' '' -- $metadata[2]);"
            ),
            "__fish_complete_directories $metadata[2]": (
                "__fish_complete_directories $place | string replace -r '^' \"$key\""
            ),
            "__fish_complete_path $metadata[2]": "__fish_complete_path $place | string replace -r '^' \"$key\"",
        },
    ),
}
"""Click's completion by shell, and what is changed in its script."""


def script_for(shell: str, commands: Group, variable: str) -> str:
    """Return the script that a shell reads to complete the words of `commands`, which `variable` asks for.

    Raises:
        UserError: click's own, which it is made of, is not as it is known.
    """
    return changed(*SHELLS[shell])(commands, {}, commands.name or "", variable).source()
