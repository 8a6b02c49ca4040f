"""What a network was trained on and how: its classes, sizes, precision, shards; read off a checkpoint or its weights.

Exported weights carry it: weights.safetensors in its header, weights.pth through the file beside it or the run's newest
checkpoint, once the tensors are the same. A file from elsewhere says nothing.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from esl_dist.config import PRECISIONS
from esl_dist.data.labels import ClassSet, class_set_from, class_set_to
from esl_dist.engine.checkpoints import RUN_CONFIG, Checkpoint, build_network, load_newest
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_name
from esl_dist.models.deeplab import ARCHITECTURES
from esl_dist.models.weight_files import WeightsFile, digest_of_weights, read_weights
from esl_dist.models.weights import published_state

FORMAT = "esl-dist weights"
FORMAT_VERSION = 1
DOMAINS = ("source", "target")
DESCRIBED_WEIGHTS = "weights.safetensors"
LARGEST_SIDE = 2**16
"""Pixels; no picture that a network was trained on is wider or higher."""


@dataclass(frozen=True)
class Provenance:
    """What is known of a network's training.

    Attributes:
        run: name of the run.
        class_set: name of its classes.
        classes: its channels' classes.
        architecture: the residual network.
        auxiliary_head: whether stage 3 has a classifier.
        per_domain: whether batch norm kept statistics per domain; a file holds the target's.
        batch_size: pictures of a domain a step.
        precision: `no` (float32), `bf16` or `fp16`.
        sizes: domain → width and height at which its pictures were read; None: as packed.
        data_sets: domain → name of its data set, as far as known.
        shards: domain → fingerprint of its shards.
    """

    run: str
    class_set: str
    classes: ClassSet
    architecture: str
    auxiliary_head: bool
    per_domain: bool
    batch_size: int
    precision: str
    sizes: dict[str, list[int] | None] = field(default_factory=dict)
    data_sets: dict[str, str] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)


def provenance_of(checkpoint: Checkpoint) -> Provenance:
    """Return what a checkpoint says of its training."""
    config = checkpoint.config
    # Other pictures than those of the source are seen as these, where no target says how.
    as_source = config.target.size is None and "target" not in checkpoint.shards
    sizes = {"source": config.source.size, "target": config.source.size if as_source else config.target.size}
    return Provenance(
        run=str(config.name),
        class_set=checkpoint.class_set,
        classes=checkpoint.classes,
        architecture=config.network.architecture,
        auxiliary_head=config.network.auxiliary_head,
        per_domain=config.network.batch_norm == "per_domain",
        batch_size=config.batch_size,
        precision=str(checkpoint.training.get("precision", "no")),
        sizes=sizes,
        data_sets=dict(checkpoint.data_sets),
        shards={domain: checkpoint.shards[domain] for domain in DOMAINS if domain in checkpoint.shards},
    )


def description_of(provenance: Provenance) -> str:
    """Return a provenance as the text that weights carry; the same one gives the same text."""
    content = {**asdict(provenance), "classes": class_set_to(provenance.classes)}
    return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, ensure_ascii=False)


def provenance_from(description: str, origin: str) -> Provenance:
    """Read back what `description_of` wrote.

    Raises:
        UserError: it is none, or of another version; the message starts with `origin` and names the key.
    """
    try:
        content = json.loads(description)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: its description cannot be read as JSON; export the weights again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{origin}: its description is not one of {FORMAT}; export the weights again")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{origin}: its description has format version {content.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}; use the version of the program that wrote it"
        )
    return _checked(content, origin)


def _checked(content: dict[str, Any], origin: str) -> Provenance:
    def held(key: str, is_right: bool, expected: str) -> Any:
        if not is_right:
            raise UserError(f"{origin}: its description: {key}: expected {expected}; export the weights again")
        return content[key]

    def one_of(key: str, choices: tuple[str, ...]) -> str:
        value = content.get(key)
        return str(held(key, isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"))

    def name(key: str) -> str:
        refuse_as_name(str(held(key, isinstance(content.get(key), str), "a name")), f"{origin}: its description: {key}")
        return str(content[key])

    def by_domain(key: str) -> dict[str, Any]:
        value = content.get(key)
        right = isinstance(value, dict) and value.keys() <= set(DOMAINS)
        return dict(held(key, right, f"values for {' and '.join(DOMAINS)}"))

    sizes, data_sets, shards = by_domain("sizes"), by_domain("data_sets"), by_domain("shards")
    held("sizes", all(size is None or _is_size(size) for size in sizes.values()), "[width, height] or null")
    held("data_sets", all(isinstance(one, str) for one in data_sets.values()), "names")
    held("shards", all(isinstance(one, str) for one in shards.values()), "fingerprints")
    flags = {
        key: bool(held(key, isinstance(content.get(key), bool), "true or false"))
        for key in ("auxiliary_head", "per_domain")
    }
    batch_size = content.get("batch_size")
    return Provenance(
        run=name("run"),
        class_set=name("class_set"),
        classes=class_set_from(content.get("classes"), f"{origin}: its description: classes"),
        architecture=one_of("architecture", tuple(ARCHITECTURES)),
        batch_size=held("batch_size", type(batch_size) is int and batch_size >= 1, "a whole number from 1 on"),
        precision=one_of("precision", PRECISIONS),
        sizes=sizes,
        data_sets=data_sets,
        shards=shards,
        **flags,
    )


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in size)
    )


def provenance_of_file(path: Path, file: WeightsFile) -> Provenance | None:
    """Return what is known of a file's weights: by itself, or by the run's folder that it lies in; None: nothing.

    Raises:
        UserError: a description that cannot be read.
    """
    if file.description is not None:
        return provenance_from(file.description, str(path))
    if not (path.parent / RUN_CONFIG).is_file():
        return None
    digest = digest_of_weights(file.tensors)
    # What lies beside a whole file may be damaged: then it says nothing.
    with suppress(UserError):
        beside = read_weights(path.parent / DESCRIBED_WEIGHTS)
        if beside.description is not None and digest_of_weights(beside.tensors) == digest:
            return provenance_from(beside.description, str(path.parent / DESCRIBED_WEIGHTS))
    with suppress(UserError):
        checkpoint = load_newest(path.parent)
        if checkpoint is not None and digest_of_weights(_exported(checkpoint)) == digest:
            return provenance_of(checkpoint)
    return None


def _exported(checkpoint: Checkpoint) -> dict[str, Tensor]:
    network = build_network(checkpoint.config.network, checkpoint.classes)
    network.load_state_dict(checkpoint.segmentation)
    return published_state(network)
