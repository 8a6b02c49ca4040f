"""What sizes of pictures a training bears, held before it begins: too small for a layer, too large for the memory.

Both are bounds from below. What they let through may still not fit, and ends with the message for too little memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from esl_dist import config as settings
from esl_dist.adaptation.methods import Method
from esl_dist.data.images import Size
from esl_dist.data.labels import ClassSet
from esl_dist.data.loading import Samples
from esl_dist.data.views import scaled
from esl_dist.data.workers import READ_AHEAD
from esl_dist.environment import Launch
from esl_dist.errors import UserError
from esl_dist.machine import free_memory
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.runs.checkpoints import build_network
from esl_dist.training.data import TrainingData

READ_BYTES, INPUT_BYTES = 3, 3 * 4
"""Of a pixel: three channels as bytes, as they are read, and in float32, as the network takes them."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one domain.

    Attributes:
        name: in front of a message: the setting that gives their size or, where they are used as packed, their shards.
        setting: which may change their size.
        size: width and height of the network's input.
        label_size: that of the logits after they are upsampled.
    """

    name: str
    setting: str
    size: Size
    label_size: Size


def refuse_impossible_sizes(
    config: settings.Train, method: Method, data: TrainingData, device: torch.device, launched: Launch
) -> None:
    """Make sure that every layer has enough pixels, and that the memory can hold what a step needs at least.

    Args:
        config: the training's settings.
        method: what makes its passes.
        data: what it reads.
        device: of a rank.
        launched: how many ranks there are, and how many of them on this machine.

    Raises:
        UserError: naming the setting, or the shards whose pictures are used as packed.
    """
    with torch.device("meta"):
        network = build_network(config.network, data.classes)
    refuse_untaken_sizes(config, method, data, network)
    refuse_full_memory(config, data, network, device, launched)


def refuse_untaken_sizes(
    config: settings.Train, method: Method, data: TrainingData, network: SegmentationNetwork
) -> None:
    """Make sure that every layer has enough pixels.

    Args:
        config: the training's settings.
        method: what makes its passes.
        data: what it reads.
        network: may be on the meta device.

    Raises:
        UserError: as `refuse_impossible_sizes`.
    """
    pictures = list(_pictures(data))
    together = config.batch_size // config.accumulate
    for one in pictures:
        if min(one.label_size) < (least := method.least_side(config.method)):
            raise UserError(
                f"{one.name}: {_named(config.method)} needs pictures of at least {least}×{least} pixels; give "
                f"such a {one.setting}=[width,height]"
            )
        alone = config.network.normalise_over == "picture"
        network.refuse_size(one.size, together, one.name, one.setting if alone else f"{one.setting} or batch_size")
    if len({one.size for one in pictures}) > 1 and method.needs_one_size(config.method):
        sizes = " and ".join(f"{one.size[0]}×{one.size[1]}" for one in pictures)
        settings_of_both = " and ".join(one.setting for one in pictures)
        raise UserError(
            f"method.mix=true lays source pictures over target pictures, and they have {sizes} pixels: give "
            f"{settings_of_both} the same [width,height], or method.mix=false"
        )
    if config.method.name == "masked_consistency":
        _refuse_blocks_as_large_as_pictures(config.method.masks.block, pictures[-1])


def refuse_impossible_validation(options: settings.Network, classes: ClassSet, validation: Samples | None) -> None:
    """Make sure, before a training begins, that its network takes the pictures of its validations.

    Raises:
        UserError: naming their shards, and the setting.
    """
    if validation is None or (size := validation.size_as_read) is None:
        return
    with torch.device("meta"):
        network = build_network(options, classes).eval()
    network.refuse_size(size, 1, f"validations on {validation.images.folder}", "validation.size")


def _named(method: settings.Method) -> str:
    hosted = f" with method.host={method.host}" if method.name == "masked_consistency" else ""
    return f"method.name={method.name}{hosted}"


def _refuse_blocks_as_large_as_pictures(block: int, target: Pictures) -> None:
    if round(min(target.size) / block) < 2:
        raise UserError(
            f"{target.name}: method.masks.block={block} hides whole pictures of {target.size[0]}×{target.size[1]}, for "
            f"a side has less than two blocks; give a smaller one (published: a sixteenth of a side)"
        )


def _pictures(data: TrainingData) -> Iterator[Pictures]:
    for domain, samples in (("source", data.source), ("target", data.target)):
        if samples is None:
            continue
        views, key = samples.views, f"{domain}.size"
        if views.crop is not None:
            key = f"{domain}.crop"
            yield Pictures(f"{key}={list(views.crop)}", key, views.crop, views.crop)
        elif (as_read := samples.size_as_read) is not None:
            size = scaled(as_read, views.scale[0])
            name = f"{key}={list(as_read)}" if samples.size is not None else f"{samples.images.folder}"
            yield Pictures(name, key, size, size if views.give_sizes else _label_size(samples) or size)


def _label_size(samples: Samples) -> Size | None:
    if samples.labels is None:
        return None
    return samples.label_size or samples.labels.shards.index.label_size


def refuse_full_memory(
    config: settings.Train, data: TrainingData, network: SegmentationNetwork, device: torch.device, launched: Launch
) -> None:
    """Hold what the ranks of this machine take at least to what is free.

    Raises:
        UserError: as `refuse_impossible_sizes`.
    """
    need, free = launched.local_world_size * least_memory(config, data, network, device, launched), free_memory()
    if need > free:
        sizes = " and ".join(f"{one.setting} {one.size[0]}×{one.size[1]}" for one in _pictures(data))
        raise UserError(
            f"batch_size={config.batch_size} with {sizes} and loader.workers={config.loader.workers} takes at least "
            f"{need / 2**30:.1f} GiB on this machine, and {free / 2**30:.1f} GiB are free; give less of them, "
            "or more to accumulate"
        )


def least_memory(
    config: settings.Train, data: TrainingData, network: SegmentationNetwork, device: torch.device, launched: Launch
) -> int:
    """Return the bytes of the host's memory that pictures take of a rank: read ahead; on a CPU in a step, too.

    There, those of its input and of the larger pass.
    """
    need = bytes_read_ahead(config, data, launched)
    if device.type == "cpu":
        pictures, share = list(_pictures(data)), _share(config, launched)
        need += INPUT_BYTES * config.accumulate * share * _pixels(pictures)
        of_input, of_label = network.least_bytes_a_pixel()
        need += max(
            share * (of_input * one.size[0] * one.size[1] + of_label * one.label_size[0] * one.label_size[1])
            for one in pictures
        )
    return need


def bytes_read_ahead(config: settings.Train, data: TrainingData, launched: Launch) -> int:
    """Return the bytes of the pictures that the reading processes of a rank keep; their labels come on top."""
    pixels = _share(config, launched) * _pixels(_pictures(data))
    return READ_BYTES * READ_AHEAD * config.loader.workers * pixels


def _share(config: settings.Train, launched: Launch) -> int:
    """Return the samples of a domain in a rank's pass."""
    return config.batch_size // (config.accumulate * launched.world_size)


def _pixels(pictures: Iterable[Pictures]) -> int:
    return sum(one.size[0] * one.size[1] for one in pictures)
