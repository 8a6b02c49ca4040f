"""What a training reads: the samples of both domains, and from them this rank's part of every step."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count, repeat

import torch

from esl_dist import config as settings
from esl_dist.adaptation.methods import Method
from esl_dist.adaptation.passes import MicroBatch
from esl_dist.config import Domain
from esl_dist.data.cache import Cache, cache_of
from esl_dist.data.class_counts import pixels_of_classes
from esl_dist.data.images import Size, as_size, same_aspect_ratio
from esl_dist.data.labels import IGNORE_INDEX, ClassSet
from esl_dist.data.loading import (
    Batch,
    HostBatch,
    LabelSource,
    Samples,
    batches,
    label_source,
    on_device,
    refuse_mixed_sizes,
)
from esl_dist.data.rare_classes import RareClassSampling, rare_class_order, rare_classes
from esl_dist.data.sampling import Wanted, endless_order, keyed, rank_batches
from esl_dist.data.shards import ShardReader, broken_shards, choose_classes, open_shards
from esl_dist.data.views import Views
from esl_dist.data.workers import Workers
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.ranks.collectives import note_progress, rank, require_same_on_ranks, warn, world_size
from esl_dist.training.counting import label_pixels

SOURCE_ORDER, TARGET_ORDER = 0, 1
"""Domain numbers for `esl_dist.data.sampling`."""


@dataclass(frozen=True)
class TrainingData:
    """The samples of both domains.

    Attributes:
        source: labelled samples.
        target: None where the method does not look at it.
        class_set: the name of the classes.
        classes: the classes.
        fingerprints: of the shards, by what they are for.
        rare_classes: what source samples are drawn from; None: each comes once an epoch.
    """

    source: Samples
    target: Samples | None
    class_set: str
    classes: ClassSet
    fingerprints: dict[str, str]
    rare_classes: RareClassSampling | None = None

    def data_sets(self) -> dict[str, str]:
        """Return the name of each domain's data set."""
        return {domain: one.images.index.dataset for domain, one in self._read().items()}

    def packed_sizes(self) -> dict[str, Size]:
        """Return width and height of each domain's pictures in its shards, where all are alike."""
        sizes = {domain: one.images.index.image_size for domain, one in self._read().items()}
        return {domain: size for domain, size in sizes.items() if size is not None}

    def _read(self) -> dict[str, Samples]:
        return {"source": self.source} | ({} if self.target is None else {"target": self.target})


def open_training_data(config: settings.Train, method: Method) -> TrainingData:
    """Open the shards that a method reads.

    Raises:
        UserError: shards that are missing or damaged, more than may be, or that do not fit each other, or a source of a
            single class or without a labelled pixel.
    """
    largest_share = config.loader.skip_corrupt
    cache = cache_of(config.cache.folder, config.cache.gigabytes, config.timeout_minutes, note_progress)
    source = _open_shards(config.source.path, largest_share, cache)
    class_set, classes = choose_classes(source, config.class_set)
    if len(classes) == 1:
        raise UserError(
            f"{source.folder}: class set {class_set} has a single class, which leaves nothing to tell apart; add one "
            "for the rest to the description, pack again, or choose another by class_set=…"
        )
    fingerprints = {"source": source.fingerprint()}
    size, replaces = as_size(config.source.size), largest_share > 0
    _refuse_mixed_sizes(source, config.source, "source")
    source_samples = Samples(source, size, LabelSource(source, classes), size, replaces, _source_views(config.source))
    _refuse_unlabelled(source_samples, class_set)
    rare = _open_rare_classes(source_samples, config.source.rare_classes, cache)
    if not method.needs_target and config.pseudo_labels is None:
        return TrainingData(source_samples, None, class_set, classes, fingerprints, rare)
    target = _open_shards(config.target.path, largest_share, cache)
    fingerprints["target"] = target.fingerprint()
    size = as_size(config.target.size)
    _refuse_mixed_sizes(target, config.target, "target")
    labels = None
    if config.pseudo_labels is not None:
        pseudo = _open_shards(config.pseudo_labels, largest_share, cache)
        fingerprints["pseudo_labels"] = pseudo.fingerprint()
        _refuse_source_as_pseudo_labels(config, fingerprints)
        labels = label_source(pseudo, class_set, classes)
        _refuse_other_frame(target, pseudo, size)
        _warn_of_other_pictures(target, pseudo)
    target_samples = Samples(target, size, labels, size, replaces, _views(config.target))
    return TrainingData(source_samples, target_samples, class_set, classes, fingerprints, rare)


def _views(options: settings.TrainingShards) -> Views:
    least, greatest = options.scale
    return Views((least, greatest), as_size(options.crop), options.mirror)


def _source_views(options: settings.Source) -> Views:
    rare = options.rare_classes
    least_in_crop = 0 if rare.temperature is None else rare.least_in_crop
    return replace(_views(options), largest_class_share=options.largest_class_share, least_in_crop=least_in_crop)


def _refuse_mixed_sizes(shards: ShardReader, options: settings.TrainingShards, domain: Domain) -> None:
    """Make sure that samples can be put into one batch: parts of one size always can."""
    if options.crop is None:
        refuse_mixed_sizes(shards, as_size(options.size), f"{domain}.size")


def _open_rare_classes(source: Samples, options: settings.RareClasses, cache: Cache) -> RareClassSampling | None:
    """Return what source samples are drawn from, if rare classes are asked for.

    Raises:
        UserError: no picture shows enough of any class.
    """
    if options.temperature is None:
        return None
    assert source.labels is not None
    counts = label_pixels(source.images, cache, source.replace_corrupt)
    pixels = pixels_of_classes(counts, source.labels.classes)
    if pixels.max() <= options.least_pixels:
        raise UserError(
            f"{source.images.folder}: no picture has more than source.rare_classes.least_pixels={options.least_pixels} "
            f"pixels of any class, and the most that one has are {pixels.max()}; lower it"
        )
    return rare_classes(pixels, options.temperature, options.least_pixels)


def _open_shards(folder: str, largest_share: float, cache: Cache) -> ShardReader:
    """Open a folder of which shards may be lost, up to a share of its samples, with a warning for each."""
    if largest_share == 0:
        return open_shards(folder, cache=cache)
    shards = open_shards(folder, whole=False, cache=cache)
    broken = list(broken_shards(shards))
    require_same_on_ranks(str([shard.damage for shard in broken]), f"broken shards in {folder}")
    lost = sum(shard.lost for shard in broken)
    # Not lost > share × number, a product that rounds: 0.29 × 100 is less than 29.
    if lost / len(shards) > largest_share:
        raise UserError(
            f"{broken[0].damage}; over all shards {lost} of {len(shards)} samples are lost, more than "
            f"loader.skip_corrupt={largest_share:g} allows: pack the data set again"
        )
    for shard in broken:
        stand_in = "; whole samples stand for them" if shard.lost else ""
        warn(f"{shard.damage}{stand_in}")
    return shards


def _refuse_unlabelled(source: Samples, class_set: str) -> None:
    """Make sure that there is something to learn; the first labelled pixel, as a rule in the first label, says so."""
    damage: CorruptSampleError | None = None
    for position in range(len(source)):
        try:
            if (source.label(position) != IGNORE_INDEX).any():
                return
        except CorruptSampleError as error:
            # Whether corrupt samples may be is decided when their turn comes.
            damage = damage or error
        note_progress()
    raise damage or UserError(
        f"{source.images.folder}: no pixel of any label belongs to a class of {class_set!r}; choose another class_set, "
        "or correct the raw ids in the data set's description and pack it again"
    )


def _refuse_source_as_pseudo_labels(config: settings.Train, fingerprints: Mapping[str, str]) -> None:
    if fingerprints["pseudo_labels"] == fingerprints["source"] != fingerprints["target"]:
        raise UserError(
            f"pseudo_labels={config.pseudo_labels}: these are the source's shards, whose labels are not the target's; "
            "give the folder that esl-dist pseudo-label has written"
        )


def _warn_of_other_pictures(target: ShardReader, pseudo: ShardReader) -> None:
    """Tell of labels that may be of other pictures: made of other shards with the same keys, or not by a network."""
    made_for = pseudo.index.made_with.get("target")
    if made_for is None:
        warn(
            f"{pseudo.folder}: no pseudo-labels of esl-dist pseudo-label; its labels are learned as those of the "
            "target's pictures with the same names"
        )
    elif made_for != target.fingerprint():
        warn(
            f"{pseudo.folder}: its labels were made for other shards than {target.folder}; make sure that the "
            "pictures are the same, packed anew, or label these"
        )


def _refuse_other_frame(target: ShardReader, pseudo: ShardReader, size: Size | None) -> None:
    """Make sure that padded pseudo-labels and padded pictures lie on each other."""
    label_size, frame = pseudo.index.label_size, size or target.index.image_size
    if not target.index.keep_aspect_ratio or pseudo.index.keep_aspect_ratio or label_size is None:
        return
    if frame is None:
        raise UserError(
            f"{pseudo.folder}: its labels were padded to {label_size[0]}×{label_size[1]}, and the pictures are read at "
            "sizes of their own; give target.size, of that aspect ratio"
        )
    if not same_aspect_ratio(frame, label_size):
        raise UserError(
            f"{pseudo.folder}: its labels were padded to {label_size[0]}×{label_size[1]}, the pictures are read at "
            f"{frame[0]}×{frame[1]}; choose a target.size of the same aspect ratio"
        )


def run_name(config: settings.Train, data: TrainingData) -> str:
    """Return the name of a run that was given none: data sets, number of classes, network, method.

    Its seed stands behind it where it is given, so that runs that differ in it have folders of their own.
    """
    data_sets = [data.source.images.index.dataset]
    if data.target is not None:
        data_sets.append(data.target.images.index.dataset)
    parts = [
        "_to_".join(data_sets),
        str(len(data.classes)),
        config.network.architecture.replace("/", "_"),
        config.method.name,
    ]
    parts += ["esl"] if config.pseudo_labels is not None else []
    return "_".join(parts + ([f"seed_{config.seed}"] if config.seed is not None else []))


@dataclass(frozen=True)
class Order:
    """Which samples go through the networks when.

    Attributes:
        seed: of the order and of what methods draw.
        shuffle_window: see `data.sampling.endless_order`.
        batch_size: samples of each domain a step, over all ranks.
        accumulate: micro-batches of a rank in each step.
    """

    seed: int
    shuffle_window: int
    batch_size: int
    accumulate: int


def own_micro_batches(
    data: TrainingData, order: Order, first_step: int, workers: Workers, device: torch.device
) -> Generator[MicroBatch]:
    """Yield this rank's micro-batches from `first_step` on; finding the place costs no reading.

    A GPU fetches them beside the work that it was given before.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def domain_batches(samples: Samples, domain: int) -> Generator[Batch]:
        first = first_step * order.batch_size
        endless = _endless(samples, data.rare_classes if domain == SOURCE_ORDER else None, order, domain, first)
        wanted = rank_batches(endless, order.batch_size, order.accumulate, rank(), world_size())
        with closing(batches(samples, wanted, workers, stream is not None)) as read:
            for batch in read:
                note_progress()
                yield on_device(batch, device) if stream is None else _fetched(batch, device, stream)

    share = order.batch_size // (order.accumulate * world_size())
    # Closed with this generator: an error in one domain ends the processes that read the other at once, too.
    with ExitStack() as opened:
        source = opened.enter_context(closing(domain_batches(data.source, SOURCE_ORDER)))
        target: Iterator[Batch | None] = repeat(None)
        if data.target is not None:
            target = opened.enter_context(closing(domain_batches(data.target, TARGET_ORDER)))
        for number in count(first_step * order.accumulate):
            step, part = divmod(number, order.accumulate)
            first = (part * world_size() + rank()) * share
            yield MicroBatch(next(source), next(target), order.seed, step, range(first, first + share))


def _endless(
    samples: Samples, rare: RareClassSampling | None, order: Order, domain: int, first: int
) -> Iterator[Wanted]:
    """Yield the samples of a domain from the number `first` on: rare classes more often, or each once an epoch."""
    if rare is not None:
        return rare_class_order(rare, order.seed, domain, first)
    epochs = endless_order(len(samples), order.shuffle_window, order.seed, domain, first)
    return keyed(epochs, order.seed, domain, first)


def _fetched(batch: HostBatch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    """Return a batch that a GPU fetches and normalises in a stream of its own; what is launched later waits for it."""
    with torch.cuda.stream(stream):
        fetched = on_device(batch, device)
    present = torch.cuda.current_stream(device)
    present.wait_stream(stream)
    for tensor in (fetched["images"], fetched["labels"]):
        if tensor is not None:
            # Its memory belongs to the other stream, which would give it away while this one still reads it.
            tensor.record_stream(present)
    return fetched
