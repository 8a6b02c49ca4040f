"""What a network was trained on and how: its classes, sizes, precision, shards; read off a checkpoint or its weights.

Exported weights carry it: weights.safetensors in its header, weights.pth through the file beside it or the run's newest
checkpoint, once the tensors are the same. A file from elsewhere says nothing.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from esl_dist.checked import Content, Label, Name, Sha256, one_of, read, whole_number
from esl_dist.config import LONGEST_SIDE, PRECISIONS
from esl_dist.data.labels import ClassSet, class_set_from
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


Domain = Annotated[str, one_of(*DOMAINS)]


def width_and_height(content: Content) -> list[int]:
    """Read a size in pixels."""
    return content.whole_numbers(2, 1, LONGEST_SIDE)


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
        precision: `no` (float32), `bf16` or `fp16`; None where that is not known.
        sizes: domain → width and height at which its pictures were read, None: as packed; empty where not known.
        data_sets: domain → name of its data set, as far as known.
        shards: domain → fingerprint of its shards, as far as known.
    """

    run: Name
    class_set: Label
    classes: Annotated[ClassSet, class_set_from]
    architecture: Annotated[str, one_of(*ARCHITECTURES)]
    auxiliary_head: bool
    per_domain: bool
    batch_size: Annotated[int, whole_number(1)]
    precision: Annotated[str, one_of(*PRECISIONS)] | None
    sizes: dict[Domain, Annotated[list[int], width_and_height] | None]
    data_sets: dict[Domain, Name]
    shards: dict[Domain, Sha256]


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
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(provenance)}
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
