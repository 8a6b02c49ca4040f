"""The whole of what is found, section by section: the machine, then the program that is asked about."""

import os
from functools import partial
from typing import TextIO

from esl_dist.config import Doctor, Evaluate, PseudoLabel, Train
from esl_dist.doctor.findings import Finding, problems_of, refused, table, verdict
from esl_dist.doctor.inputs import Program, checks_of_settings
from esl_dist.doctor.plan import Plan, extras_found, plan_of, precision_found, processes_found
from esl_dist.doctor.this_machine import findings_of_machine
from esl_dist.errors import UserError

EXPERIMENTS = Train().experiments


def print_findings(config: Doctor, asked: Program | None, out: TextIO) -> list[Finding]:
    """Print what is found as it is found, and what it comes to; returns it.

    Args:
        config: what is asked.
        asked: the settings of the program; None: the machine alone is asked about.
        out: where to.
    """
    is_colored = out.isatty() and "NO_COLOR" not in os.environ
    experiments = EXPERIMENTS if asked is None or isinstance(asked, PseudoLabel) else asked.experiments
    found = findings_of_machine(experiments)
    print(table("this machine", found, is_colored), file=out, flush=True)
    if asked is not None:
        of_program = findings_of_program(asked, config.processes)
        recipe = "" if config.recipe is None else f" with {config.recipe}"
        print(table(f"{config.program}{recipe}", of_program, is_colored), file=out)
        found += of_program
    print(verdict(found), file=out, flush=True)
    return found


def findings_of_program(config: Program, processes: int | None) -> list[Finding]:
    """Return what is found of a program with its settings, in so many processes; None: as many as there would be."""
    if isinstance(config, Train):
        from esl_dist.training.contradictions import refuse_unknown_method

        if unknown := problems_of(refused("settings", [partial(refuse_unknown_method, config)], "known")):
            return unknown
    settings = refused("settings", checks_of_settings(config), "no contradiction")
    try:
        plan = plan_of(config, processes)
    except UserError as error:
        return [*settings, Finding("problem", "processes", str(error))]
    found = [*settings, processes_found(plan), *extras_found(config), precision_found(config, plan)]
    return found + _findings_of_inputs(config, plan, not problems_of(settings))


def _findings_of_inputs(config: Program, plan: Plan, is_sound: bool) -> list[Finding]:
    match config:
        case Train():
            from esl_dist.doctor.training import findings_of_training

            return findings_of_training(config, plan)
        case PseudoLabel():
            from esl_dist.doctor.trained import findings_of_labelling

            return findings_of_labelling(config, plan, is_sound)
        case Evaluate():
            from esl_dist.doctor.trained import findings_of_evaluation

            return findings_of_evaluation(config, plan, is_sound)
