"""Settings of a training that contradict each other, or what the launcher started: known before torch is imported."""

from collections.abc import Sequence
from glob import escape
from importlib.util import find_spec
from pathlib import Path

from esl_dist import config as settings
from esl_dist.adaptation.catalogue import METHODS
from esl_dist.config_types import TENSORBOARD, TIMM_PREFIX
from esl_dist.data.shard_index import refuse_missing_shards
from esl_dist.environment import is_alone, launch
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_name, refuse_unwritable
from esl_dist.runs.layout import refuse_missing_network


def check_training(config: settings.Train) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: naming the settings.
    """
    name = config.method.name
    if name not in METHODS:
        raise UserError(f"method.name={name} is impossible: expected one of {', '.join(METHODS)}")
    options = config.optimizer
    for key, steps in (("steps", config.steps), ("optimizer.warm_up_steps", options.warm_up_steps)):
        if steps > options.schedule_steps:
            raise UserError(f"{key}={steps} goes beyond optimizer.schedule_steps={options.schedule_steps}")
    if options.warm_up_from is not None and not options.warm_up_steps:
        raise UserError(
            f"optimizer.warm_up_from={options.warm_up_from:g} needs steps in which the rate rises from it: give "
            "optimizer.warm_up_steps=…, or leave it out"
        )
    if is_alone():
        refuse_unequal_shares(config)
    needs_target = METHODS.needs_target(name) or config.pseudo_labels is not None
    if config.target.path == "" and needs_target:
        raise UserError(
            "no value for target.path; give the shards of the unlabelled domain in the file or as target.path=…"
        )
    for domain, shards in (("source", config.source), ("target", config.target)):
        _refuse_sizes_that_differ(domain, shards)
    if config.source.largest_class_share < 1 and config.source.crop is None:
        raise UserError(
            f"source.largest_class_share={config.source.largest_class_share:g} is of parts of pictures; give their "
            "size as source.crop=[width,height]"
        )
    _refuse_unreachable_pixels(config.source)
    if config.network.batch_norm == "per_domain" and not needs_target:
        raise UserError(
            f"network.batch_norm=per_domain needs passes over the target, and {name} without pseudo-labels has none; "
            "choose network.batch_norm=shared"
        )
    if config.validation.path and not config.validate_every:
        raise UserError("validation.path=… needs steps after which it is looked at: give validate_every=…")
    if config.validate_every and not config.validation.path and not needs_target:
        raise UserError(
            f"validate_every={config.validate_every} needs pictures, and {name} reads no target: give validation.path=…"
        )
    if config.compile and config.checkpoint_activations:
        raise UserError(
            "compile=true and checkpoint_activations=true exclude each other: the compiler chooses what passes keep; "
            "give one of them"
        )
    if config.network.start_without is not None and config.network.start is None:
        raise UserError(
            f"network.start_without={config.network.start_without} needs weights to start from: network.start=…"
        )
    _refuse_other_networks(config.network)
    if config.name is not None:
        refuse_as_name(config.name, "name")


def _refuse_sizes_that_differ(domain: str, shards: settings.TrainingShards) -> None:
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


def _refuse_unreachable_pixels(source: settings.Source) -> None:
    rare, crop = source.rare_classes, source.crop
    if rare.temperature is not None and crop is not None and rare.least_in_crop >= crop[0] * crop[1]:
        raise UserError(
            f"source.rare_classes.least_in_crop={rare.least_in_crop} are as many pixels as "
            f"source.crop=[{crop[0]},{crop[1]}] has, or more, so no part of a picture has them; give fewer"
        )


def _refuse_other_networks(network: settings.Network) -> None:
    """Hold what a residual network of one form is asked for to that form, and weights to one place of them."""
    if network.pretrained and network.start is not None:
        raise UserError("network.pretrained=true and network.start=… are both weights to start from; give one of them")
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


def refuse_unequal_shares(config: settings.Train) -> None:
    """Make sure that each rank has as many samples of a step as every other one, in each pass.

    Raises:
        UserError: they do not.
    """
    world_size = launch().world_size
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
    needs_target = METHODS.needs_target(config.method.name) or config.pseudo_labels is not None
    target = config.target.path if needs_target else None
    for place in (config.source.path, target, config.pseudo_labels, config.validation.path or None):
        if place is not None:
            refuse_missing_shards(place)
    # A run that goes on reads them no more; one without a name may be any of those that are there.
    run = "*" if config.name is None else escape(config.name)
    if any(Path(config.experiments).glob(f"snapshots/{run}/checkpoints")):
        return
    refuse_unwritable("experiments", config.experiments, Path(config.experiments, "snapshots", config.name or ""))
    if (start := config.network.start) is not None:
        if not Path(start).exists():
            raise UserError(f"{start}: no such file of weights")
        refuse_missing_network(Path(start))
