"""Settings that were given and have no effect beside the others: told when a training begins, for one may be a mistake.

Told are those that another choice leaves unread, of method, optimiser, network, validations and pictures. What a recipe
keeps for other methods on purpose, such as the target of a source-only training, is not.
"""

from collections.abc import Iterator

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_types import TENSORBOARD, TIMM_PREFIX
from esl_dist.config_values import settings_of

OF_METHODS = ("method.", "optimizer.discriminator_")
"""What settings that some method reads begin with; `method.name` is read by all."""


def unread_settings(config: settings.Train) -> list[str]:
    """Return the keys of settings that differ from their defaults and have no effect beside the others."""
    defaults, unread = settings_of(type(config)), tuple(_unread(config))
    return [
        key
        for key, setting in settings_of(config).items()
        if setting.default != defaults[key].default and f"{key}.".startswith(unread)
    ]


def _unread(config: settings.Train) -> Iterator[str]:
    """Yield the keys of settings, and groups of them, that nothing reads, each with a point behind it."""
    rare = "source.rare_classes"
    for is_read, keys in (
        (config.source.rare_classes.temperature is not None, (rare,)),
        (config.source.crop is not None, (f"{rare}.least_in_crop",)),
        (config.network.auxiliary_head, ("method.cross_entropy.auxiliary", "method.target.auxiliary")),
        (
            not config.network.architecture.startswith(TIMM_PREFIX),
            ("optimizer.multipliers.stem", "optimizer.multipliers.shortcuts"),
        ),
        (config.validate_every > 0, ("validation",)),
        (TENSORBOARD in config.trackers, ("pictures_every", "pictures_of")),
        (config.pictures_every > 0, ("pictures_of",)),
    ):
        if not is_read:
            yield from (f"{key}." for key in keys)
    # A method that does not say what it reads may have optimisers of its own, too.
    if (reads := METHODS[config.method.name].reads(config.method)) is not None:
        yield from _unread_by_method(config.method, reads)
        yield "optimizer.betas." if config.optimizer.kind == "sgd" else "optimizer.momentum."


def _unread_by_method(options: settings.Method, reads: frozenset[str]) -> Iterator[str]:
    read = tuple(f"{key}." for key in ("method.name", *reads))
    of_methods = (f"{key}." for key in settings_of(settings.Train) if key.startswith(OF_METHODS))
    yield from (key for key in of_methods if not key.startswith(read))
    yield "method.teacher.entropy_" if options.teacher.trust == "share" else "method.teacher.confidence."
    if options.augmentation.jitter == 0:
        yield "method.augmentation.jitter_strength."
