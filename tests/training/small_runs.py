"""Runs as a training leaves them, without the training: settings and checkpoints of a tiny network."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.config_files import from_dictionary, save_config
from esl_dist.data.labels import ClassSet
from esl_dist.files import sha256_of_file
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weights import initialise
from esl_dist.runs.checkpoints import (
    MANIFEST,
    RUN_CONFIG,
    Checkpoint,
    _digest,
    build_network,
    checkpoint_folder,
    load_newest,
    save_checkpoint,
)
from esl_dist.runs.trained import Provenance
from tests.builders import class_set

FINGERPRINTS = {"source": "a" * 64, "target": "b" * 64}
MORE_OF_TRAINING: dict[str, Any] = {}
"""What else of the training a checkpoint says."""
KNOWN = Provenance(
    run="r",
    class_set="village3",
    classes=class_set(),
    architecture="tiny",
    auxiliary_head=True,
    per_domain=False,
    batch_size=3,
    precision="bf16",
    sizes={"source": None, "target": [40, 36]},
    data_sets={"source": "a", "target": "b"},
    shards={"source": "1" * 64, "target": "2" * 64},
)
"""What is known of a run's network, in all that its weights may say."""
KEEP_ALL = settings.Checkpoints(keep_newest=1000)


def configuration(**changes: Any) -> settings.Train:
    """Return the settings of a run of the tiny network."""
    values: dict[str, Any] = {
        "name": "r",
        "source": {"path": "s"},
        "target": {"path": "t"},
        "network": {"architecture": "tiny"},
        "method": {"discriminator_channels": 4},
        "batch_size": 3,
    }
    return from_dictionary(settings.Train, values | changes, "tests")


def tiny_network(seed: int, classes: int = 3, auxiliary_head: bool = True, per_domain: bool = False) -> DeepLab:
    """Return a tiny network in evaluation mode; `seed` draws its weights, large enough to predict several classes."""
    torch.manual_seed(seed)
    network = DeepLab("tiny", classes, auxiliary_head, per_domain)
    initialise(network)
    return network.eval()


def save_run(
    run: Path, steps: int, config: settings.Train | None = None, classes: ClassSet | None = None
) -> dict[str, Tensor]:
    """Write a run's config.yaml and a checkpoint of a network drawn from the step; returns the network's state."""
    config = configuration(steps=steps) if config is None else config
    classes = class_set() if classes is None else classes
    torch.manual_seed(steps)
    network = build_network(config.network, classes)
    initialise(network)
    save_config(config, run / RUN_CONFIG)
    save_state(run, steps, network.state_dict(), config, classes)
    return network.state_dict()


def save_state(
    run: Path,
    step: int,
    segmentation: Mapping[str, Tensor],
    config: settings.Train,
    classes: ClassSet,
    options: settings.Checkpoints = KEEP_ALL,
) -> Path:
    """Write one checkpoint and prune as `options` say; returns its folder."""
    return save_checkpoint(run, checkpoint(step, segmentation, config, classes), options)


def checkpoint(step: int, segmentation: Mapping[str, Tensor], config: settings.Train, classes: ClassSet) -> Checkpoint:
    """Return a checkpoint of a network: all but its state is what fits the settings."""
    torch.manual_seed(step)
    networks, optimizers = networks_and_optimizers(config, classes)
    states = {name: one.state_dict() for name, one in optimizers.items()}
    return Checkpoint(
        step=step,
        config=config,
        class_set="village3",
        classes=classes,
        shards=FINGERPRINTS,
        networks={name: one.state_dict() for name, one in networks.items()} | {SEGMENTATION: dict(segmentation)},
        training={"optimizers": states, "scaler": {}, **MORE_OF_TRAINING},
    )


def networks_and_optimizers(
    config: settings.Train, classes: ClassSet
) -> tuple[nn.ModuleDict, dict[str, torch.optim.Optimizer]]:
    """Return what a training of these settings begins with."""
    method = METHODS[config.method.name]
    networks = build_networks(method, build_network(config.network, classes), len(classes), config.method)
    return networks, method.optimizers(networks, config.optimizer)


def after_a_step(config: settings.Train, classes: ClassSet) -> Checkpoint:
    """Return a checkpoint with a tensor in every place that may hold one, after one step on gradients of 1."""
    torch.manual_seed(1)
    networks, optimizers = networks_and_optimizers(config, classes)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return replace(
        checkpoint(1, {}, config, classes),
        networks={name: one.state_dict() for name, one in networks.items()},
        training={
            "optimizers": {name: one.state_dict() for name, one in optimizers.items()},
            "precision": "fp16",
            "scaler": GradScaler("cpu").state_dict(),
            "corrupt_samples": {"epochs": [0, 0], "in_epoch": [1, 0], "totals": [2, 0]},
            "journal": {"losses": {"source": 0.5}, "updates": 1, "skipped": 0},
        },
    )


def newest_whole(run: Path) -> Path | None:
    """Return the folder of the checkpoint that a run would go on from; None if it has none."""
    newest = load_newest(run)
    return None if newest is None else checkpoint_folder(run, newest.step)


def rewrite_as_version(checkpoint: Path, format_version: int) -> None:
    """Make a whole checkpoint one that another version of the program wrote."""
    reseal(checkpoint, lambda manifest: {**manifest, "format_version": format_version})


def reseal(
    folder: Path, change: Callable[[Any], Any] = lambda manifest: manifest, text: Callable[[Any], str] = json.dumps
) -> None:
    """Change a checkpoint's manifest, and give manifest and files the checksums of what they are now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("sha256", None)
    others = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    manifest["files"] = {path.name: {"sha256": sha256_of_file(path)} for path in others}
    changed = change(manifest)
    sealed = {**changed, "sha256": _digest(changed)} if isinstance(changed, dict) else changed
    (folder / MANIFEST).write_text(text(sealed))
