"""What a program refuses of its settings and shards, wherever that is asked before it starts.

`launch/slurm/check.py` asks before jobs are submitted whose checkpoints and pseudo-labels are yet to come, and hears
the first that is wrong; doctor asks for all that is.
"""

from collections.abc import Callable
from functools import partial

from esl_dist.config import Evaluate, PseudoLabel, Train
from esl_dist.early import give_interrupt_back

Program = Train | PseudoLabel | Evaluate
"""The settings of a program that reads shards."""


def check_program(config: Program) -> None:
    """Refuse what the program would refuse on one process, networks and places for results excepted.

    Raises:
        UserError: settings that cannot be, or shards that are missing, damaged or do not fit each other.
    """
    from esl_dist.training.contradictions import refuse_unequal_shares

    for check in checks_of_settings(config):
        check()
    if isinstance(config, Train):
        refuse_unequal_shares(config, 1)
    # Not before: torch takes seconds, and what is wrong with the settings is known without it.
    from esl_dist.data.cache import cache_of
    from esl_dist.data.shards import open_shards

    give_interrupt_back()
    if isinstance(config, Train):
        from esl_dist.adaptation.methods import METHODS
        from esl_dist.training.contradictions import refuse_missing_trackers
        from esl_dist.training.data import open_training_data
        from esl_dist.training.validation import open_validation

        refuse_missing_trackers(config.trackers)
        open_validation(config, open_training_data(config, METHODS[config.method.name]))
    else:
        cache = cache_of(config.cache.folder, config.cache.gigabytes, config.timeout_minutes, lambda: None)
        for place in shards_of(config).values():
            open_shards(place, cache=cache)


def checks_of_settings(config: Program) -> list[Callable[[], None]]:
    """Return what each refuse, with a UserError, one contradiction of the settings.

    Those of a training take its method for known, which the first of them looks at.
    """
    from esl_dist.inference.contradictions import checks_of_evaluation, checks_of_labelling
    from esl_dist.training.contradictions import CHECKS

    match config:
        case Train():
            return [partial(check, config) for check in CHECKS]
        case PseudoLabel():
            return checks_of_labelling(config)
        case Evaluate():
            return checks_of_evaluation(config)


def shards_of(config: Program) -> dict[str, str]:
    """Return the places of the shards that a program reads, by setting; its method has to be known."""
    from esl_dist.training.contradictions import needs_target

    places: dict[str, str | None]
    match config:
        case Train():
            places = {
                "source.path": config.source.path,
                "target.path": config.target.path if needs_target(config) else None,
                "pseudo_labels": config.pseudo_labels,
                "validation.path": config.validation.path if config.validate_every else None,
            }
        case PseudoLabel():
            places = {"target.path": config.target.path}
        case Evaluate():
            places = {"data.path": config.data.path, "statistics_from": config.statistics_from}
    return {setting: place for setting, place in places.items() if place}
