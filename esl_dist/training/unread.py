"""Settings that were given and that nothing in this training reads: told when it begins, for one may be a mistake."""

from collections.abc import Iterator

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_types import TIMM_PREFIX
from esl_dist.config_values import settings_of


def unread_settings(config: settings.Train) -> list[str]:
    """Return the settings, as `key=value`, that differ from their defaults and have no effect beside the others."""
    defaults, unread = settings_of(type(config)), tuple(_unread(config))
    return [
        f"{key}={setting.default}"
        for key, setting in settings_of(config).items()
        if setting.default != defaults[key].default and f"{key}.".startswith(unread)
    ]


def _unread(config: settings.Train) -> Iterator[str]:
    """Yield the keys of settings, and groups of them, that nothing reads, each with a point behind it."""
    for is_read, keys in (
        (config.source.rare_classes.temperature is not None, ("source.rare_classes",)),
        (
            not config.network.architecture.startswith(TIMM_PREFIX),
            tuple(f"optimizer.multipliers.{part}" for part in ("stem", "shortcuts")),
        ),
        (config.optimizer.kind == "sgd", ("optimizer.momentum",)),
        (config.optimizer.kind == "adamw", ("optimizer.betas",)),
        (config.validate_every > 0, ("validation",)),
        (config.pictures_every > 0, ("pictures_of",)),
    ):
        if not is_read:
            yield from (f"{key}." for key in keys)
    yield from _unread_by_method(config.method)


def _unread_by_method(options: settings.Method) -> Iterator[str]:
    reads = METHODS[options.name].reads(options)
    if reads is None:
        return
    yield from (f"method.{name}." for name in vars(options) if name not in {"name", *reads})
    if "discriminator_channels" not in reads:
        yield from ("optimizer.discriminator_learning_rate.", "optimizer.discriminator_betas.")
    if options.teacher.trust == "share":
        yield "method.teacher.entropy_"
    else:
        yield "method.teacher.confidence."
    if options.augmentation.jitter == 0:
        yield "method.augmentation.jitter_strength."
