"""Trained networks to predict with: those of a run, of one checkpoint, or of a file with the published names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from esl_dist.data.labels import ClassSet
from esl_dist.errors import UserError
from esl_dist.files import sha256_of_file
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import read_weights
from esl_dist.models.weights import describe_weights, load_weights
from esl_dist.ranks.collectives import print_on_main, require_same_on_ranks
from esl_dist.runs.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    build_network,
    find_checkpoint,
)
from esl_dist.runs.provenance import Provenance, provenance_of, provenance_of_file


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork(Provenance):
    """A segmentation network in evaluation mode, and all that is known of its training.

    Attributes:
        network: on the device it was asked for.
        name: its run's, or its file's.
        step: steps it was trained; None for a file, which does not say.
        logs: its run's folder in TensorBoard; None where it does not lie in a run's folder.
        keeps: what its batch-norm statistics are of: `shared` by both domains, `per_domain`, or the `target` alone.
    """

    network: DeepLab
    name: str
    step: int | None = None
    logs: Path | None = None
    keeps: str = "shared"


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
    network = build_network(checkpoint.config.network, checkpoint.classes)
    network.load_state_dict(checkpoint.segmentation)
    return TrainedNetwork(
        **vars(known),
        network=network.to(device).eval(),
        name=known.run,
        step=checkpoint.step,
        logs=_log_folder(folder.resolve()),
        keeps="per_domain" if known.per_domain else "shared",
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
    file = read_weights(path)
    if file.wrapper is not None:
        print_on_main(f"{path}: takes what it holds under {file.wrapper!r}")
    shape = architecture, classes, auxiliary_head = describe_weights(file.tensors, str(path))
    network = DeepLab(*shape, per_domain=False)
    load_weights(network, file.tensors, str(path))
    known = provenance_of_file(path, file)
    # The file of every run has the same name.
    run = path.resolve().parent.name if (path.parent / RUN_CONFIG).is_file() else known.run if known else None
    if known is None:
        known = _assumed(path, shape, class_sets, class_set)
    elif (known.architecture, len(known.classes), known.auxiliary_head) != shape:
        raise UserError(
            f"{path}: its description is of a {known.architecture} of {len(known.classes)} classes, its tensors are "
            f"those of a {architecture} of {classes} classes{'' if auxiliary_head else ' without auxiliary head'}; "
            "export the weights again"
        )
    _refuse_other_class_set(path, known, class_set)
    return TrainedNetwork(
        **vars(known),
        network=network.to(device).eval(),
        name=path.stem if run is None else f"{run}_{path.stem}",
        keeps="target" if known.per_domain else "shared",
    )


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
