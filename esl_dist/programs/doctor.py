"""Say what this machine has, and whether a program can run on it with a recipe."""

import json
import sys
from collections.abc import Sequence

from esl_dist.config import Doctor, Evaluate, PseudoLabel, Train
from esl_dist.config_files import load_config
from esl_dist.config_values import settings_of
from esl_dist.early import give_interrupt_back
from esl_dist.endings import EXIT_CANNOT
from esl_dist.environment import LOCAL_RANK, MOST_RANKS, first_number
from esl_dist.errors import UserError
from esl_dist.files import shortened
from esl_dist.recipes_by_name import recipe_file

PROGRAMS: dict[str, type[Train | PseudoLabel | Evaluate]] = {
    "train": Train,
    "pseudo-label": PseudoLabel,
    "evaluate": Evaluate,
}


def words_of_doctor(words: Sequence[str]) -> list[str]:
    """Return the words `[PROGRAM] [--config RECIPE] key=value …` as doctor's own settings.

    A key that is none of doctor's is one of the program. What cannot be understood stays, to be refused.

    Raises:
        UserError: the first word names no program that is looked at, or there are two files.
    """
    own, others, rest, words = settings_of(Doctor), list[str](), list[str](), list(words)
    if words and words[0] in PROGRAMS:
        rest.append(f"program={words.pop(0)}")
    elif words and "=" not in words[0] and not words[0].startswith("-"):
        raise UserError(f"doctor: {shortened(words[0])}: expected {', '.join(PROGRAMS)}, the programs that it looks at")
    behind = iter(words)
    for word in behind:
        key, equals, value = word.partition("=")
        if key == "--config" and (recipe := value or next(behind, "")):
            rest.append(f"recipe={recipe}")
        elif equals and not word.startswith("-") and key.split(".")[0] not in own:
            # References are to settings of the program, and resolved with them.
            others.append(word.replace("${", r"\${"))
        else:
            rest.append(word)
    if (given := sum(word.partition("=")[0] == "--config" for word in words)) > 1:
        raise UserError(f"command line: --config is given {given} times; expected one file")
    return [*rest, f"settings={json.dumps(others, ensure_ascii=False)}"] if others else rest


def main(config: Doctor) -> int:
    """Print what is found; returns the exit code."""
    asked = _asked(config)
    config.program = config.program or "train"
    # Not before: torch takes seconds, and what is wrong with the words is known without it.
    from esl_dist.doctor.findings import problems_of
    from esl_dist.doctor.report import print_findings

    give_interrupt_back()
    # Of the processes of a machine, one speaks.
    if (first_number(LOCAL_RANK, -1, MOST_RANKS) or 0) > 0:
        return 0
    return EXIT_CANNOT if problems_of(print_findings(config, asked, sys.stdout)) else 0


def _asked(config: Doctor) -> Train | PseudoLabel | Evaluate | None:
    """Return the settings that are asked about; None: the machine alone is.

    Raises:
        UserError: they cannot be read.
    """
    if config.recipe is None and not config.settings and config.program is None and config.processes is None:
        return None
    recipe = None if config.recipe is None else recipe_file(config.recipe)
    return load_config(PROGRAMS[config.program or "train"], recipe, config.settings)
