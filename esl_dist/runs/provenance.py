"""What a network was trained on and how: its classes, sizes, precision, shards; read off a checkpoint or its weights.

Exported weights carry it: weights.safetensors in its header, weights.pth through the file beside it or the run's newest
checkpoint, once the tensors are the same. A file from elsewhere says nothing.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from esl_dist.checked import Content
from esl_dist.config import LONGEST_SIDE, PRECISIONS
from esl_dist.data.labels import ClassSet, class_set_from, class_set_to
from esl_dist.errors import UserError
from esl_dist.files import parsed_json
from esl_dist.models.deeplab import ARCHITECTURES
from esl_dist.models.weight_files import WeightsFile, digest_of_weights, read_weights
from esl_dist.models.weights import published_state
from esl_dist.runs.checkpoints import RUN_CONFIG, Checkpoint, build_network, load_newest

FORMAT = "esl-dist weights"
FORMAT_VERSION = 1
DOMAINS = ("source", "target")
DESCRIBED_WEIGHTS = "weights.safetensors"
REMEDY = "export the weights again"


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


def provenance_from(description: str, file: Path) -> Provenance:
    """Read back what `description_of` wrote into `file`.

    Raises:
        UserError: it is none, or of another version; the message names the file and the key.
    """
    try:
        value = parsed_json(description)
    except ValueError as error:
        raise UserError(f"{file}: its description cannot be read as JSON ({error}); {REMEDY}") from error
    content = Content(value, file, REMEDY)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{file}: its description is not one of {FORMAT}; {REMEDY}")
    if (version := content.at("format_version").whole_number()) != FORMAT_VERSION:
        raise UserError(
            f"{file}: its description has format version {version}, this program reads {FORMAT_VERSION}; use the "
            "version of the program that wrote it"
        )
    classes = content.at("classes")
    return Provenance(
        run=content.at("run").name(),
        class_set=content.at("class_set").label(),
        classes=class_set_from(classes.value, classes.place()),
        architecture=_one_of(content.at("architecture"), tuple(ARCHITECTURES)),
        auxiliary_head=content.at("auxiliary_head").truth(),
        per_domain=content.at("per_domain").truth(),
        batch_size=content.at("batch_size").whole_number(1),
        precision=_one_of(content.at("precision"), PRECISIONS),
        sizes={domain: _size_from(size) for domain, size in _by_domain(content.at("sizes"))},
        data_sets={domain: name.name() for domain, name in _by_domain(content.at("data_sets"))},
        shards={domain: fingerprint.sha256() for domain, fingerprint in _by_domain(content.at("shards"))},
    )


def _one_of(content: Content, choices: tuple[str, ...]) -> str:
    if content.text() not in choices:
        content.refuse(f"one of {', '.join(choices)}")
    return content.text()


def _by_domain(content: Content) -> list[tuple[str, Content]]:
    if not content.mapping().keys() <= set(DOMAINS):
        content.refuse(f"values for {' and '.join(DOMAINS)}")
    return content.items()


def _size_from(content: Content) -> list[int] | None:
    return None if content.value is None else content.whole_numbers(2, 1, LONGEST_SIDE)


def provenance_of_file(path: Path, file: WeightsFile) -> Provenance | None:
    """Return what is known of a file's weights: by itself, or by the run's folder that it lies in; None: nothing.

    Raises:
        UserError: a description that cannot be read.
    """
    if file.description is not None:
        return provenance_from(file.description, path)
    if not (path.parent / RUN_CONFIG).is_file():
        return None
    digest = digest_of_weights(file.tensors)
    # What lies beside a whole file may be damaged: then it says nothing.
    with suppress(UserError):
        beside = read_weights(path.parent / DESCRIBED_WEIGHTS)
        if beside.description is not None and digest_of_weights(beside.tensors) == digest:
            return provenance_from(beside.description, path.parent / DESCRIBED_WEIGHTS)
    with suppress(UserError):
        checkpoint = load_newest(path.parent)
        if checkpoint is not None and digest_of_weights(_exported(checkpoint)) == digest:
            return provenance_of(checkpoint)
    return None


def _exported(checkpoint: Checkpoint) -> dict[str, Tensor]:
    network = build_network(checkpoint.config.network, checkpoint.classes)
    network.load_state_dict(checkpoint.segmentation)
    return published_state(network)
