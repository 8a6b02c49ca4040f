"""Settings of a training that contradict each other, or what the launcher started: known before torch is imported."""

from collections.abc import Callable, Sequence
from glob import escape
from importlib.util import find_spec
from pathlib import Path

from esl_dist import config as settings
from esl_dist.adaptation.catalogue import METHODS
from esl_dist.config_types import TENSORBOARD, TIMM_PREFIX
from esl_dist.data.shard_index import refuse_missing_shards
from esl_dist.environment import is_alone
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_name, refuse_unwritable
from esl_dist.runs.layout import refuse_missing_network


def check_training(config: settings.Train) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: naming the settings of the first contradiction.
    """
    for check in CHECKS:
        check(config)
    if is_alone():
        refuse_unequal_shares(config, 1)


def refuse_unknown_method(config: settings.Train) -> None:
    """Make sure that there is a method of the name that is given.

    Raises:
        UserError: there is none.
    """
    if config.method.name not in METHODS:
        raise UserError(f"method.name={config.method.name} is impossible: expected one of {', '.join(METHODS)}")


def needs_target(config: settings.Train) -> bool:
    """Return whether a training reads the target's shards."""
    return METHODS.needs_target(config.method.name) or config.pseudo_labels is not None


def _refuse_steps_beyond_schedule(config: settings.Train) -> None:
    options = config.optimizer
    for key, steps in (("steps", config.steps), ("optimizer.warm_up_steps", options.warm_up_steps)):
        if steps > options.schedule_steps:
            raise UserError(f"{key}={steps} goes beyond optimizer.schedule_steps={options.schedule_steps}")


def _refuse_warm_up_without_steps(config: settings.Train) -> None:
    options = config.optimizer
    if options.warm_up_from is not None and not options.warm_up_steps:
        raise UserError(
            f"optimizer.warm_up_from={options.warm_up_from:g} needs steps in which the rate rises from it: give "
            "optimizer.warm_up_steps=…, or leave it out"
        )


def _refuse_missing_target(config: settings.Train) -> None:
    if config.target.path == "" and needs_target(config):
        raise UserError(
            "no value for target.path; give the shards of the unlabelled domain in the file or as target.path=…"
        )


def _refuse_sizes_that_differ(config: settings.Train) -> None:
    for domain, shards in (("source", config.source), ("target", config.target)):
        least, greatest = shards.scale
        if least < greatest and shards.crop is None:
            raise UserError(
                f"{domain}.scale=[{least:g},{greatest:g}] gives pictures of different sizes, which no batch can hold; "
                f"give the size of a part of them as {domain}.crop=[width,height]"
            )
        if least == greatest != 1 and shards.crop is None:
            # Evaluation and validation see pictures at the size.
            raise UserError(
                f"{domain}.scale=[{least:g},{greatest:g}] is one factor for all; give the size itself as "
                f"{domain}.size=[width,height]"
            )


def _refuse_parts_with_sides_exchanged(config: settings.Train) -> None:
    # A part that lies beyond smaller pictures on purpose does not fit them on its side either.
    for domain, shards in (("source", config.source), ("target", config.target)):
        if shards.size is None or shards.crop is None:
            continue
        largest = [round(shards.scale[1] * side) for side in shards.size]
        if not _fits(shards.crop, largest) and _fits(shards.crop[::-1], largest):
            (width, height), (full_width, full_height) = shards.crop, shards.size
            raise UserError(
                f"{domain}.crop=[{width},{height}] does not fit into pictures of {domain}.size="
                f"[{full_width},{full_height}], and [{height},{width}] does; both are width, then height"
            )


def _fits(part: Sequence[int], picture: Sequence[int]) -> bool:
    return all(one <= other for one, other in zip(part, picture, strict=True))


def _refuse_shares_of_no_parts(config: settings.Train) -> None:
    if config.source.largest_class_share < 1 and config.source.crop is None:
        raise UserError(
            f"source.largest_class_share={config.source.largest_class_share:g} is of parts of pictures; give their "
            "size as source.crop=[width,height]"
        )


def _refuse_unreachable_pixels(config: settings.Train) -> None:
    rare, crop = config.source.rare_classes, config.source.crop
    if rare.temperature is not None and crop is not None and rare.least_in_crop >= crop[0] * crop[1]:
        raise UserError(
            f"source.rare_classes.least_in_crop={rare.least_in_crop} are as many pixels as "
            f"source.crop=[{crop[0]},{crop[1]}] has, or more, so no part of a picture has them; give fewer"
        )


def _refuse_statistics_of_no_passes(config: settings.Train) -> None:
    if config.network.batch_norm == "per_domain" and not needs_target(config):
        raise UserError(
            f"network.batch_norm=per_domain needs passes over the target, and {config.method.name} without "
            "pseudo-labels has none; choose network.batch_norm=shared"
        )


def _refuse_validation_without_steps_or_pictures(config: settings.Train) -> None:
    if config.validation.path and not config.validate_every:
        raise UserError("validation.path=… needs steps after which it is looked at: give validate_every=…")
    if config.validate_every and not config.validation.path and not needs_target(config):
        raise UserError(
            f"validate_every={config.validate_every} needs pictures, and {config.method.name} reads no target: give "
            "validation.path=…"
        )


def _refuse_compiled_recomputation(config: settings.Train) -> None:
    if config.compile and config.checkpoint_activations:
        raise UserError(
            "compile=true and checkpoint_activations=true exclude each other: the compiler chooses what passes keep; "
            "give one of them"
        )


def _refuse_two_starts(config: settings.Train) -> None:
    network = config.network
    if network.start_without is not None and network.start is None:
        raise UserError(f"network.start_without={network.start_without} needs weights to start from: network.start=…")
    if network.pretrained and network.start is not None:
        raise UserError("network.pretrained=true and network.start=… are both weights to start from; give one of them")


def _refuse_other_networks(config: settings.Train) -> None:
    """Hold what a residual network of one form is asked for to that form."""
    network = config.network
    if network.architecture.startswith(TIMM_PREFIX):
        return
    for key, value, own in (
        ("head", network.head, "deeplab"),
        ("output_stride", network.output_stride, 8),
        ("pretrained", network.pretrained or None, False),
    ):
        if value not in (None, own):
            said = str(value).lower() if isinstance(value, bool) else value
            raise UserError(
                f"network.{key}={said} is for backbones of timm (network.architecture=timm/…); leave it out for "
                f"{network.architecture}"
            )


def _refuse_name(config: settings.Train) -> None:
    if config.name is not None:
        refuse_as_name(config.name, "name")


CHECKS: tuple[Callable[[settings.Train], None], ...] = (
    refuse_unknown_method,
    _refuse_steps_beyond_schedule,
    _refuse_warm_up_without_steps,
    _refuse_missing_target,
    _refuse_sizes_that_differ,
    _refuse_parts_with_sides_exchanged,
    _refuse_shares_of_no_parts,
    _refuse_unreachable_pixels,
    _refuse_statistics_of_no_passes,
    _refuse_validation_without_steps_or_pictures,
    _refuse_compiled_recomputation,
    _refuse_two_starts,
    _refuse_other_networks,
    _refuse_name,
)
"""Each refuses one contradiction of settings with a UserError; those behind the first take its method for known."""


def refuse_unequal_shares(config: settings.Train, world_size: int) -> None:
    """Make sure that each of so many ranks has as many samples of a step as every other one, in each pass.

    Raises:
        UserError: they do not.
    """
    share = config.accumulate * world_size
    if config.batch_size % share:
        raise UserError(
            f"batch_size={config.batch_size} cannot be shared by {world_size} processes in {config.accumulate} "
            f"passes; expected a multiple of {share}"
        )


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Make sure that the packages of trackers are installed; each is called as its tracker is.

    Raises:
        UserError: one is not.
    """
    for name in names:
        found = find_spec(name)
        # A folder of that name, as some trackers leave one, is no package.
        if name != TENSORBOARD and (found is None or found.origin is None):
            raise UserError(
                f"trackers: {name} needs a package that is not installed: pip install {name}, or leave it out"
            )


def check_inputs(config: settings.Train) -> None:
    """Refuse shards, weights, trackers and a place for runs that are not there, where this process is alone.

    Raises:
        UserError: naming the folder or the file.
    """
    if not is_alone():
        return
    refuse_missing_trackers(config.trackers)
    target = config.target.path if needs_target(config) else None
    for place in (config.source.path, target, config.validation.path or None):
        if place is not None:
            refuse_missing_shards(place)
    if config.pseudo_labels is not None:
        refuse_missing_shards(config.pseudo_labels, "esl-dist pseudo-label")
    # A run that goes on reads them no more; one without a name may be any of those that are there.
    run = "*" if config.name is None else escape(config.name)
    if any(Path(config.experiments).glob(f"snapshots/{run}/checkpoints")):
        return
    refuse_unwritable("experiments", config.experiments, Path(config.experiments, "snapshots", config.name or ""))
    if config.network.start is not None:
        refuse_missing_start(Path(config.network.start))


def refuse_missing_start(start: Path) -> None:
    """Make sure that there are weights to start from.

    Raises:
        UserError: there is nothing, or a folder without a network.
    """
    if not start.exists():
        raise UserError(f"{start}: no such file of weights")
    refuse_missing_network(start)
