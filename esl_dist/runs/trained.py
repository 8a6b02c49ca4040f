"""Trained networks: those of a run, a checkpoint or a file of weights, and what is known of their training.

That is read off a checkpoint or its weights: classes, sizes, precision, shards. Exported weights carry it:
weights.safetensors in its header, weights.pth through the file beside it or the run's newest checkpoint, once the
tensors are the same. A file from elsewhere says nothing.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from esl_dist import config as settings
from esl_dist.checked import Content, Label, Name, Sha256, one_of, read, whole_number
from esl_dist.config import DOMAINS, LONGEST_SIDE, PRECISIONS
from esl_dist.config_types import A_NETWORK, TIMM_PREFIX
from esl_dist.data.images import Size, as_size
from esl_dist.data.labels import ClassSet, class_set_from
from esl_dist.errors import UserError
from esl_dist.files import parsed_json, sha256_of_file
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.memory_format import on_device
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.models.weight_files import digest_of_weights, read_weights
from esl_dist.models.weights import describe_weights, load_weights, published_state
from esl_dist.ranks.collectives import print_on_main, require_same_on_ranks
from esl_dist.runs.checkpoints import (
    Checkpoint,
    TensorState,
    build_network,
    find_checkpoint,
    load_newest,
)
from esl_dist.runs.layout import MANIFEST, RUN_CONFIG

FORMAT = "esl-dist weights"
FORMAT_VERSION = 1
DESCRIBED_WEIGHTS = "weights.safetensors"
REMEDY = "export the weights again"

OF_BACKBONES = ("head", "output_stride")
"""What is told of a network where it was chosen: residual networks have no choice."""

DomainName = Annotated[str, one_of(*DOMAINS)]


def width_and_height(content: Content) -> list[int]:
    """Read a size in pixels."""
    return content.whole_numbers(2, 1, LONGEST_SIDE)


def architecture_name(content: Content) -> str:
    """Read the name of a residual network, or timm/<name>."""
    name = content.text()
    if not A_NETWORK.holds(name):
        content.refuse(A_NETWORK.words)
    return name


@dataclass(frozen=True)
class Provenance:
    """What is known of a network's training.

    Attributes:
        run: name of the run.
        class_set: name of its classes.
        classes: its channels' classes.
        architecture: of the segmentation network, as in the settings.
        auxiliary_head: whether stage 3 has a classifier.
        per_domain: whether batch norm kept statistics per domain; a file holds the target's.
        batch_size: pictures of a domain a step; 1 where each was normalised by itself.
        precision: `no` (float32), `tf32`, `bf16` or `fp16`; None where that is not known.
        sizes: domain → width and height at which its pictures were read, None: as packed; empty where not known.
        data_sets: domain → name of its data set, as far as known.
        shards: domain → fingerprint of its shards, as far as known.
        head: as in the settings; None: the backbone's usual one.
        output_stride: as in the settings; None: the usual one.
    """

    run: Name
    class_set: Label
    classes: Annotated[ClassSet, class_set_from]
    architecture: Annotated[str, architecture_name]
    auxiliary_head: bool
    per_domain: bool
    batch_size: Annotated[int, whole_number(1)]
    precision: Annotated[str, one_of(*PRECISIONS)] | None
    sizes: dict[DomainName, Annotated[list[int], width_and_height] | None]
    data_sets: dict[DomainName, Name]
    shards: dict[DomainName, Sha256]
    head: Annotated[str, one_of("deeplab", "transposed")] | None = None
    output_stride: Annotated[int, whole_number(8, 32)] | None = None


def provenance_of(checkpoint: Checkpoint) -> Provenance:
    """Return what a checkpoint says of its training."""
    config = checkpoint.config
    return Provenance(
        run=str(config.name),
        class_set=checkpoint.class_set,
        classes=checkpoint.classes,
        architecture=config.network.architecture,
        auxiliary_head=config.network.auxiliary_head,
        per_domain=config.network.batch_norm == "per_domain",
        batch_size=1 if config.network.normalise_over == "picture" else config.batch_size,
        precision=str(checkpoint.training.get("precision", "no")),
        sizes=seen_sizes(config, checkpoint.shards),
        data_sets=dict(checkpoint.data_sets),
        shards={domain: checkpoint.shards[domain] for domain in DOMAINS if domain in checkpoint.shards},
        head=config.network.head,
        output_stride=config.network.output_stride,
    )


def seen_sizes(config: settings.Train, shards: Mapping[str, str]) -> dict[str, list[int] | None]:
    """Return width and height at which a training sees the pictures of each domain; None: as packed.

    Other pictures than those of the source are seen as these, where no target says how.

    Args:
        config: the training's.
        shards: fingerprints of the shards that it reads, by domain.
    """
    as_source = config.target.size is None and "target" not in shards
    return {"source": config.source.size, "target": config.source.size if as_source else config.target.size}


def description_of(provenance: Provenance) -> str:
    """Return a provenance as the text that weights carry; the same one gives the same text."""
    of_network = {name: value for name in OF_BACKBONES if (value := getattr(provenance, name)) is not None}
    known = {name: value for name, value in asdict(provenance).items() if name not in OF_BACKBONES}
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **known, **of_network}
    return json.dumps(content, ensure_ascii=False)


def provenance_from(description: str, file: Path) -> Provenance:
    """Read back what `description_of` wrote into `file`.

    Raises:
        UserError: it is none, or of another version; the message names the file and the key.
    """
    try:
        content = Content(parsed_json(description), file, REMEDY)
    except ValueError as error:
        raise UserError(f"{file}: its description cannot be read as JSON ({error}); {REMEDY}") from error
    content.version_of(FORMAT, [FORMAT_VERSION])
    return read(content, Provenance)


def weights_and_provenance(path: Path) -> tuple[TensorState, Provenance | None]:
    """Return the tensors of a network, and what is known of it; None: nothing.

    Args:
        path: a run folder, whose newest checkpoint is taken, a checkpoint folder, or a file of weights.

    Raises:
        UserError: nothing whole is there, or a description cannot be read.
    """
    if path.is_dir():
        _, checkpoint = find_checkpoint(path)
        return checkpoint.segmentation, provenance_of(checkpoint)
    file = read_weights(path)
    if file.wrapper is not None:
        print_on_main(f"{path}: takes what it holds under {file.wrapper!r}")
    if file.description is not None:
        return file.tensors, provenance_from(file.description, path)
    return file.tensors, _provenance_by_run(path.parent, file.tensors) if (path.parent / RUN_CONFIG).is_file() else None


def _provenance_by_run(run: Path, weights: TensorState) -> Provenance | None:
    digest = digest_of_weights(weights)
    # What lies beside a whole file may be damaged: then it says nothing.
    with suppress(UserError):
        beside = read_weights(run / DESCRIBED_WEIGHTS)
        if beside.description is not None and digest_of_weights(beside.tensors) == digest:
            return provenance_from(beside.description, run / DESCRIBED_WEIGHTS)
    with suppress(UserError):
        checkpoint = load_newest(run)
        if checkpoint is not None and digest_of_weights(published_state(_network_of(checkpoint))) == digest:
            return provenance_of(checkpoint)
    return None


def _network_of(checkpoint: Checkpoint) -> SegmentationNetwork:
    network = build_network(checkpoint.config.network, checkpoint.classes)
    network.load_state_dict(checkpoint.segmentation)
    return network


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork(Provenance):
    """A segmentation network in evaluation mode, and all that is known of its training.

    Attributes:
        network: on the device it was asked for.
        name: its run's, or its file's.
        step: steps it was trained; None for a file, which does not say.
        logs: its run's folder in TensorBoard; None where it does not lie in a run's folder.
        keeps: what its batch-norm statistics are of: `shared` by both domains, `per_domain`, or the `target` alone.
        packed_sizes: see `Checkpoint`; a file of weights does not say, for it is to have the bytes of earlier versions.
    """

    network: SegmentationNetwork
    name: str
    step: int | None = None
    logs: Path | None = None
    keeps: str = "shared"
    packed_sizes: Mapping[str, Size] = field(default_factory=dict)

    def seen_at(self, domain: str) -> Size | None:
        """Return width and height at which a training saw a domain's pictures; None: not known, or not the same of all.

        As in `seen_sizes`, where there was no target other pictures are seen as the source's.
        """
        packed = self.packed_sizes.get(domain if domain in self.shards else "source")
        return as_size(self.sizes.get(domain)) or packed


def load_trained(
    path: str | Path, class_sets: Mapping[str, ClassSet], class_set: str | None, device: torch.device
) -> TrainedNetwork:
    """Load a run folder's newest checkpoint, a checkpoint folder, or a file of weights; the same on every rank.

    Args:
        path: the folder or file.
        class_sets: those of the shards, among which those of a file are that does not know its own.
        class_set: which of them a file's classes are, None: the first with as many; has to be that of the network where
            it is known.
        device: where the network goes.

    Raises:
        UserError: nothing whole is there, the ranks do not find the same, or the classes do not fit.
    """
    if Path(path).is_file():
        return _from_file(Path(path), class_sets, class_set, device)
    folder, checkpoint = find_checkpoint(path)
    require_same_on_ranks(sha256_of_file(folder / MANIFEST), "checkpoint")
    known = provenance_of(checkpoint)
    _refuse_other_class_set(folder, known, class_set)
    return TrainedNetwork(
        **vars(known),
        network=on_device(_network_of(checkpoint), device).eval(),
        name=known.run,
        step=checkpoint.step,
        logs=_log_folder(folder.resolve()),
        keeps="per_domain" if known.per_domain else "shared",
        packed_sizes=checkpoint.packed_sizes,
    )


def _log_folder(checkpoint: Path) -> Path | None:
    """Return <experiments>/logs/<name> for <experiments>/snapshots/<name>/checkpoints/step-…, None for others."""
    run = checkpoint.parent.parent
    is_of_run = (checkpoint.parent.name, run.parent.name) == ("checkpoints", "snapshots")
    return run.parent.parent / "logs" / run.name if is_of_run else None


def _from_file(
    path: Path, class_sets: Mapping[str, ClassSet], class_set: str | None, device: torch.device
) -> TrainedNetwork:
    require_same_on_ranks(sha256_of_file(path), "file of weights")
    tensors, known = weights_and_provenance(path)
    # The file of every run has the same name.
    run = path.resolve().parent.name if (path.parent / RUN_CONFIG).is_file() else known.run if known else None
    if known is not None and known.architecture.startswith(TIMM_PREFIX):
        # What backbone it is shows in no tensor's name.
        network = _described_network(path, known, tensors)
    else:
        network, known = _network_by_its_tensors(path, tensors, known, class_sets, class_set)
    _refuse_other_class_set(path, known, class_set)
    return TrainedNetwork(
        **vars(known),
        network=on_device(network, device).eval(),
        name=path.stem if run is None else f"{run}_{path.stem}",
        keeps="target" if known.per_domain else "shared",
    )


def _described_network(path: Path, known: Provenance, tensors: TensorState) -> SegmentationNetwork:
    options = settings.Network(
        architecture=known.architecture,
        auxiliary_head=known.auxiliary_head,
        head=known.head,
        output_stride=known.output_stride,
    )
    network = build_network(options, known.classes)
    missing = load_weights(network, tensors, str(path)).missing
    if missing:
        raise UserError(
            f"{path}: it lacks {len(missing)} tensors of its {known.architecture}, such as {missing[0]}; {REMEDY}"
        )
    return network


def _network_by_its_tensors(
    path: Path,
    tensors: TensorState,
    known: Provenance | None,
    class_sets: Mapping[str, ClassSet],
    class_set: str | None,
) -> tuple[SegmentationNetwork, Provenance]:
    shape = architecture, classes, auxiliary_head = describe_weights(tensors, str(path))
    network = DeepLab(*shape, per_domain=False)
    load_weights(network, tensors, str(path))
    if known is None:
        known = _assumed(path, shape, class_sets, class_set)
    elif (known.architecture, len(known.classes), known.auxiliary_head) != shape:
        raise UserError(
            f"{path}: its description is of a {known.architecture} of {len(known.classes)} classes, its tensors are "
            f"those of a {architecture} of {classes} classes{'' if auxiliary_head else ' without auxiliary head'}; "
            "export the weights again"
        )
    return network, known


def _refuse_other_class_set(origin: Path, known: Provenance, asked: str | None) -> None:
    if asked not in (None, known.class_set):
        raise UserError(f"{origin}: was trained on the class set {known.class_set!r}, not on {asked!r}")


def _assumed(
    path: Path, shape: tuple[str, int, bool], class_sets: Mapping[str, ClassSet], asked: str | None
) -> Provenance:
    """Return what a file of a network of some architecture, classes and heads is taken for if it says nothing more."""
    architecture, classes, auxiliary_head = shape
    fitting = [name for name, one in class_sets.items() if len(one) == classes and asked in (None, name)]
    if not fitting:
        known = ", ".join(f"{name} ({len(one)})" for name, one in class_sets.items())
        wanted = "" if asked is None else f" and class_set={asked}"
        found = f"fits none of the class sets there are: {known}" if known else "does not say which, nor do the shards"
        raise UserError(
            f"{path}: a network of {classes} classes{wanted} {found}; name them with classes_from=…, a data set's "
            "description (configs/datasets/) or a folder of labelled shards"
        )
    assumed = fitting[0]
    print_on_main(
        f"{path}: says nothing of its training; by its tensors it is a {architecture} of {classes} classes, taken for "
        f"those of {assumed}; seen in float32 and, unless a size is given, as packed"
    )
    return Provenance("", assumed, class_sets[assumed], architecture, auxiliary_head, False, 1, None, {}, {}, {})
