"""Trained networks to predict with: those of a run, of one checkpoint, or of a file with the published names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from esl_dist.data.labels import ClassSet
from esl_dist.engine.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    build_network,
    find_checkpoint,
    log_folder,
)
from esl_dist.engine.distributed import refuse_disagreement
from esl_dist.errors import UserError
from esl_dist.files import sha256_of_file
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import describe_weights, load_weights, read_weights


@dataclass(frozen=True)
class TrainedNetwork:
    """A segmentation network in evaluation mode, and where it comes from.

    Attributes:
        network: on the device it was asked for.
        name: its run's, or its file's.
        step: steps it was trained; None where that is not known.
        class_set: name of its classes.
        classes: its channels' classes.
        batch_size: that of its training; 1 where that is not known.
        logs: its run's folder in TensorBoard; None where it does not lie in a run's folder.
    """

    network: DeepLab
    name: str
    step: int | None
    class_set: str
    classes: ClassSet
    batch_size: int
    logs: Path | None


def load_trained(
    path: str | Path, class_sets: Mapping[str, ClassSet], class_set: str | None, device: torch.device
) -> TrainedNetwork:
    """Load a run folder's newest checkpoint, a checkpoint folder, or a file of weights; the same on every rank.

    Args:
        path: the folder or file.
        class_sets: those of the shards; a file says only how many classes it has.
        class_set: which of them a file's classes are; None: the first with as many classes.
        device: where the network goes.

    Raises:
        UserError: nothing whole is there, the ranks do not find the same, or the classes do not fit.
    """
    if Path(path).is_file():
        return _from_file(Path(path), class_sets, class_set, device)
    folder, checkpoint = find_checkpoint(path)
    refuse_disagreement(sha256_of_file(folder / MANIFEST), "checkpoint")
    if class_set not in (None, checkpoint.class_set):
        raise UserError(f"{folder}: was trained on the class set {checkpoint.class_set!r}, not on {class_set!r}")
    network = build_network(checkpoint.config.network, checkpoint.classes)
    network.load_state_dict(checkpoint.segmentation)
    assert checkpoint.config.name is not None
    return TrainedNetwork(
        network=network.to(device).eval(),
        name=checkpoint.config.name,
        step=checkpoint.step,
        class_set=checkpoint.class_set,
        classes=checkpoint.classes,
        batch_size=checkpoint.config.batch_size,
        logs=log_folder(folder.resolve().parent.parent) if folder.resolve().parent.name == "checkpoints" else None,
    )


def _from_file(
    path: Path, class_sets: Mapping[str, ClassSet], class_set: str | None, device: torch.device
) -> TrainedNetwork:
    refuse_disagreement(sha256_of_file(path), "file of weights")
    weights = read_weights(path)
    architecture, classes, auxiliary_head = describe_weights(weights, str(path))
    name = _class_set_of(path, classes, class_sets, class_set)
    network = DeepLab(architecture, classes, auxiliary_head, per_domain=False)
    report = load_weights(network, weights, str(path))
    missing = [tensor for tensor in report.missing if not tensor.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{path}: not a whole network: it lacks {', '.join(missing[:6])}")
    return TrainedNetwork(
        network=network.to(device).eval(),
        # The file of every run has the same name.
        name=f"{path.resolve().parent.name}_{path.stem}" if (path.parent / RUN_CONFIG).is_file() else path.stem,
        step=None,
        class_set=name,
        classes=class_sets[name],
        batch_size=1,
        logs=None,
    )


def _class_set_of(path: Path, classes: int, class_sets: Mapping[str, ClassSet], asked: str | None) -> str:
    fitting = [name for name, one in class_sets.items() if len(one) == classes and asked in (None, name)]
    if not fitting:
        known = ", ".join(f"{name} ({len(one)})" for name, one in class_sets.items())
        wanted = "" if asked is None else f" and class_set={asked}"
        raise UserError(f"{path}: a network of {classes} classes{wanted} fits none of the shards' class sets: {known}")
    return fitting[0]
