"""From the words of `esl-dist` to the program that they ask for; click reads the first, the program the others."""

import difflib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from esl_dist.called import COMMAND
from esl_dist.cli.commands import COMMANDS
from esl_dist.early import COMPLETION_VARIABLE

SHELLS = ("bash", "zsh", "fish")
CONFIG = "--config"
HELP = frozenset({"-h", "--help"})


class Asked(NamedTuple):
    """A program that is asked for: the name of its command, and the words behind it."""

    command: str
    words: list[str]


class ProgramCommand(click.Command):
    """A command whose words are left to its program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take every word as it is, options too."""
        ctx.args = list(args)
        return []

    def invoke(self, ctx: click.Context) -> Asked:
        """Return what is asked for: the program is no matter of click."""
        return Asked(ctx.info_name or "", ctx.args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what the word may become, settings and their values."""
        from esl_dist.cli.completion import completed

        return completed(COMMANDS[ctx.info_name or ""], ctx.args, incomplete)


class Commands(click.Group):
    """The commands, in the order in which they are of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return them as the table has them; click would sort them."""
        return list(self.commands)


@click.group(COMMAND, cls=Commands, invoke_without_command=True, context_settings={"help_option_names": sorted(HELP)})
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Unsupervised domain adaptation for semantic segmentation, on one process or many, with one result.

    Every program takes settings as key=value words and recipes by --config NAME; `esl-dist COMMAND --help` lists them.
    On several processes: torchrun --nproc_per_node N -m esl_dist COMMAND ...
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _name, _command in COMMANDS.items():
    commands.add_command(ProgramCommand(_name, short_help=_command.summary))


@commands.command()
def recipes() -> None:
    """List the recipes that --config takes by name."""
    from esl_dist.recipes_by_name import recipes

    for name in recipes():
        click.echo(name)


@commands.command(short_help="Print what makes a shell complete words of esl-dist.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, settings and recipes.

    In ~/.bashrc: eval "$(esl-dist completion bash)"; in ~/.zshrc the same with zsh; for fish:
    esl-dist completion fish > ~/.config/fish/completions/esl-dist.fish
    """
    from esl_dist.cli.completion import script_for

    click.echo(script_for(shell, commands, COMPLETION_VARIABLE))


def start() -> None:
    """Do what the words of this process ask for, and leave with an exit code."""
    from esl_dist.command_line import as_programs_end, finish, run_program

    with as_programs_end():
        program = _asked(sys.argv[1:])
        if program is None:
            finish()
    if program is not None:
        run_program(*program)


def _asked(words: Sequence[str]) -> tuple[type, Callable[[Any], int | None], list[str]] | None:
    """Return the program that is asked for, as `run_program` takes it; None where an answer was to be printed, and is.

    Raises:
        UserError: there is no such command, or no such option.
    """
    try:
        asked = commands.main(list(words), COMMAND, complete_var=COMPLETION_VARIABLE, standalone_mode=False)
    except click.UsageError as error:
        from esl_dist.errors import UserError

        raise UserError(f"command line: {_problem(error, words)}") from error
    if not isinstance(asked, Asked):
        return None
    command = COMMANDS[asked.command]
    if not HELP.isdisjoint(asked.words):
        from esl_dist.cli.help import help_of

        place = next(place for place, word in enumerate(asked.words) if word in HELP)
        print(
            help_of(asked.command, command, [word for word in asked.words[place + 1 :][:1] if not word.startswith("-")])
        )
        return None
    return command.settings(), command.main(), _with_list(command.read(asked.words), command.listed)


def _with_list(words: Sequence[str], setting: str | None) -> list[str]:
    """Put the words without `=` into the setting that is their list, where a command has one.

    Raises:
        UserError: the setting is given, too.
    """
    if setting is None:
        return list(words)
    listed, others, behind = list[str](), list[str](), iter(words)
    for word in behind:
        if word == CONFIG:
            others += [word, *itertools.islice(behind, 1)]
        elif word.startswith("-") and word not in HELP:
            # An option, or one that there is not: what is behind may be its value.
            others += [word, *behind]
        else:
            (others if "=" in word or word in HELP else listed).append(word)
    if not listed:
        return others
    if any(word.startswith(f"{setting}=") for word in others):
        from esl_dist.errors import UserError

        raise UserError(f"command line: {setting} are given as words and as {setting}=…; choose one way")
    return [f"{setting}={json.dumps(listed, ensure_ascii=False)}", *others]


def _problem(error: click.UsageError, words: Sequence[str]) -> str:
    if not words or words[0] in commands.commands or words[0].startswith("-"):
        return f"{error.format_message()} {COMMAND} --help lists the commands"
    from esl_dist.files import shortened

    # Scripts have the names of the programs.
    names = {command.program: name for name, command in COMMANDS.items()} | {name: name for name in commands.commands}
    near = difflib.get_close_matches(words[0].lower(), names, 1)
    known = f"the nearest known one is {names[near[0]]!r}" if near else f"known are {', '.join(commands.commands)}"
    return f"unknown command {shortened(words[0])}; {known}"
