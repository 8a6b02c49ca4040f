"""Checkpoints: a folder a step, whole or absent, checksummed; the newest whole one is found without help.

    <run>/checkpoints/step-00000400/
        segmentation.safetensors     the network under its published names (with per-domain statistics: + source_*)
        <network>.safetensors        each network that the method adds, such as discriminators
        training.pt                  optimisers, loss scaler, counts, precision: tensors and plain values, no code
        manifest.json                step, configuration, classes, shards' fingerprints, data sets' names, SHA-256 of
                                     each file and of the rest of itself

The learning rates and the data position are pure functions of the step (`adaptation.optimisers`,
`data.sampling`), so the step is their state; after the initial weights nothing is drawn at random. A folder is written
under a name that no reader takes, flushed, and renamed.

All of it is checked where it is read. What does not fit the run that the manifest describes makes a checkpoint a broken
one, which is told and passed over, like one whose bytes are not those that were saved.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, build_networks
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.checked import (
    Content,
    Label,
    Name,
    Sha256,
    one_of,
    read,
    read_content,
    read_name,
    read_sha256,
    whole_number,
)
from esl_dist.config_files import from_dictionary, load_config
from esl_dist.config_types import TIMM_PREFIX
from esl_dist.data.images import Size
from esl_dist.data.labels import ClassSet, class_set_from, class_set_to
from esl_dist.data.loading import MEAN_COLOR
from esl_dist.data.shard_index import size_of_pictures
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX, fsync_folder, make_folder, refuse_as_name, sha256_of_file, write_json
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.runs.fitting import (
    REMEDY,
    BrokenCheckpointError,
    refuse_other_tensors,
    refuse_other_training,
    told_as_broken,
)
from esl_dist.runs.layout import MANIFEST, RUN_CONFIG, no_checkpoint

FORMAT = "esl-dist checkpoint"
FORMAT_VERSION = 3
READ_VERSIONS = (2, FORMAT_VERSION)
BROKEN_SUFFIX = ".broken"
TRAINING = "training.pt"

LAST_STEP = 10**12
"""Far beyond any training; TensorBoard, say, does not count endlessly."""
BEGIN_ANEW = "begin anew: train under another name or delete the run's folder"

TensorState = dict[str, Tensor]


def _settings_from(content: Content) -> settings.Train:
    # What paths and networks are made of is told by its own key.
    read_name(content.at("name"))
    one_of(*METHODS)(content.at("method").at("name"))
    return from_dictionary(settings.Train, content.value, content.place())


def _checksum_from(content: Content) -> Any:
    return read_sha256(content.at("sha256"))


@dataclass(frozen=True)
class Manifest:
    """What a manifest says of a checkpoint.

    Attributes:
        step: steps done.
        config: the run's configuration.
        class_set: name of the class set of its labels.
        classes: the class set.
        shards: fingerprints of the shards it reads: `source`, `target`, `pseudo_labels`.
        data_sets: names of the data sets of `source` and `target`; empty in checkpoints of older versions.
        packed_sizes: width and height of their pictures in the shards, where all are alike; likewise.
        files: SHA-256 of the other files, by name.
    """

    step: Annotated[int, whole_number(1, LAST_STEP)]
    config: Annotated[settings.Train, _settings_from]
    class_set: Label
    classes: Annotated[ClassSet, class_set_from]
    shards: dict[Annotated[str, one_of("source", "target", "pseudo_labels")], Sha256]
    data_sets: dict[str, Name] = field(default_factory=dict, kw_only=True)
    packed_sizes: dict[str, Annotated[Size, size_of_pictures]] = field(default_factory=dict, kw_only=True)
    files: dict[Name, Annotated[str, _checksum_from]] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Checkpoint(Manifest):
    """What a training needs to go on as if it had never stopped.

    Attributes:
        networks: states of the networks by name: the segmentation network's, and of those that the method adds.
        training: states of optimisers and loss scaler, counts of corrupt samples, precision, journal.
    """

    networks: dict[str, TensorState]
    training: dict[str, Any]

    @property
    def segmentation(self) -> TensorState:
        """The state of the segmentation network."""
        return self.networks[SEGMENTATION]


def save_checkpoint(run: Path, checkpoint: Checkpoint, options: settings.Checkpoints, best: int | None = None) -> Path:
    """Write a checkpoint and prune older ones; returns its folder.

    Args:
        run: the run's folder.
        checkpoint: what is written.
        options: which of the older ones stay.
        best: step of one that stays, too.

    Raises:
        UserError: it cannot be written, for want of space perhaps, or it would be refused when it is read; the
            checkpoints before it stand.
    """
    folder = checkpoint_folder(run, checkpoint.step)
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, checkpoint)
        _remove(folder)
        os.replace(partial, folder)
        fsync_folder(folder.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError is how torch.save reports a full disk
        raise UserError(
            f"{folder}: cannot be written ({error}); what was saved before stands: make room, then the same command "
            "goes on from there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _prune(run, checkpoint.step, options, best)
    return folder


def _write(partial: Path, checkpoint: Checkpoint) -> None:
    make_folder(partial)
    for name, state in checkpoint.networks.items():
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        save_file(plain, partial / file_of(name))
    torch.save(checkpoint.training, partial / TRAINING)
    files = {}
    for path in sorted(partial.iterdir()):
        # safetensors makes files that none but their owner may read, whatever the umask says.
        shutil.copymode(partial / TRAINING, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"sha256": sha256_of_file(path)}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "config": asdict(checkpoint.config),
        "class_set": checkpoint.class_set,
        "classes": class_set_to(checkpoint.classes),
        "shards": checkpoint.shards,
        "data_sets": checkpoint.data_sets,
        "packed_sizes": {domain: list(size) for domain, size in checkpoint.packed_sizes.items()},
        "files": files,
    }
    read(Content(manifest, partial / MANIFEST, "nothing was written"), Manifest)
    write_json(partial / MANIFEST, {**manifest, "sha256": _digest(manifest)})


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Raises:
        BrokenCheckpointError: a file is missing, cannot be read, is not the one that was written, or does not fit.
        UserError: another version of the program wrote it.
    """
    manifest = read_manifest(folder)
    networks = _networks_on_meta(manifest)
    states = {}
    for name, network in networks.items():
        file = folder / file_of(name)
        with told_as_broken(file):
            states[name] = load_file(file)
            refuse_other_tensors(states[name], network.state_dict(), file)
    with told_as_broken(folder / TRAINING):
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        optimizers = METHODS[manifest.config.method.name].optimizers(networks, manifest.config.optimizer)
        refuse_other_training(Content(training, folder / TRAINING, REMEDY), optimizers)
    return Checkpoint(**vars(manifest), networks=states, training=training)


def _networks_on_meta(manifest: Manifest) -> nn.ModuleDict:
    """Return the run's networks, with shapes and without memory."""
    config = manifest.config
    with torch.device("meta"):
        segmentation = build_network(config.network, manifest.classes)
        return build_networks(METHODS[config.method.name], segmentation, len(manifest.classes), config.method)


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest after comparing every file with its checksum.

    Raises:
        BrokenCheckpointError: a file is missing, cannot be read, has other bytes, or the manifest says what cannot be.
        UserError: another version of the program wrote it.
    """
    file = folder / MANIFEST
    with told_as_broken(file):
        content = read_content(file, REMEDY)
        # First, for damage could pretend to be another version.
        said = content.mapping()
        if said.pop("sha256", None) != _digest(said):
            raise UserError(f"{file}: not the bytes that were saved; {REMEDY}")
        version = content.version_of(FORMAT, READ_VERSIONS, BEGIN_ANEW)
        manifest = read(content, Manifest)
        _refuse_other_files(content.at("files"), manifest, version)
    for name, saved in manifest.files.items():
        file = folder / name
        with told_as_broken(file):
            if not file.is_file() or sha256_of_file(file) != saved:
                raise UserError(f"{file}: missing or not the bytes that were saved; {REMEDY}")
    return manifest


def _refuse_other_files(content: Content, manifest: Manifest, version: int) -> None:
    expected = {*map(file_of, _networks_on_meta(manifest)), TRAINING}
    # Methods without discriminators had an empty file of them.
    may_be = {file_of("discriminators")} - expected if version == 2 else set()
    if manifest.files.keys() - may_be != expected:
        content.refuse(f"the files {', '.join(sorted(expected))}")


def run_config(run: Path) -> settings.Train:
    """Read a run's config.yaml.

    Raises:
        UserError: it is missing, says what cannot be, or its name could be no folder's.
    """
    file = run / RUN_CONFIG
    config = load_config(settings.Train, file)
    refuse_as_name(config.name or "", f"{file}: name")
    return config


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the place of a run's checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the run's checkpoint folders, in the order of their steps; those not finished are not among them."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch("step-[0-9]+", path.name)]
    # A link may lead to a disk that is not there now. From step 10^8 on, names are longer: theirs is another order.
    return sorted(
        (path for path in found if 1 <= step_of(path) <= LAST_STEP and (path.is_dir() or path.is_symlink())),
        key=lambda path: (step_of(path), path),
    )


def load_newest(run: Path) -> Checkpoint | None:
    """Read the run's newest checkpoint whose files are all as saved; broken ones are named on standard error.

    Raises:
        UserError: there are checkpoints, but none can be used, or another version of the program wrote it.
    """
    newest = _find_newest(run)
    return None if newest is None else newest[1]


def _find_newest(run: Path) -> tuple[Path, Checkpoint] | None:
    why_not = ""
    for folder in reversed(checkpoint_folders(run)):
        try:
            checkpoint = load_checkpoint(folder)
            if checkpoint.step == step_of(folder):
                return folder, checkpoint
            problem = f"{folder}: is of step {checkpoint.step}; give it the name of its step"
        except BrokenCheckpointError as error:
            problem = str(error)
        print(f"warning: passing over a broken checkpoint: {problem}", file=sys.stderr)
        why_not = why_not or problem
    if why_not:
        raise UserError(
            f"{run}: none of its checkpoints can be used (the newest: {why_not}); put a whole one back, or {BEGIN_ANEW}"
        )
    return None


def set_aside_after(run: Path, step: int) -> None:
    """Rename the checkpoints after `step`; the run goes on from there because they are broken.

    Else they would count among the newest that stay, and in the end a whole one would go for them.
    """
    for folder in checkpoint_folders(run):
        if step_of(folder) > step:
            aside = folder.with_name(folder.name + BROKEN_SUFFIX)
            print(f"warning: setting a broken checkpoint aside: {aside}", file=sys.stderr)
            _remove(aside)
            folder.rename(aside)


def find_checkpoint(path: str | Path) -> tuple[Path, Checkpoint]:
    """Read `path` itself if it is a checkpoint folder, the newest whole one in it if it is a run.

    Returns:
        The checkpoint's folder, and what it holds; a network's gigabyte is hashed once.

    Raises:
        UserError: it is neither, or a run without a checkpoint that can be used.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return folder, load_checkpoint(folder)
    newest = _find_newest(folder)
    if newest is None:
        raise no_checkpoint(folder)
    return newest


def build_network(config: settings.Network, classes: ClassSet) -> SegmentationNetwork:
    """Return the segmentation network that a configuration describes, with random weights.

    Raises:
        UserError: it takes timm, which is not installed or has no such backbone.
    """
    if config.architecture.startswith(TIMM_PREFIX):
        try:
            from esl_dist.models.timm_networks import TimmNetwork  # it imports timm, for seconds
        except ModuleNotFoundError as error:
            if error.name != "timm":
                raise
            raise UserError(
                f"network.architecture={config.architecture} needs timm: pip install 'esl-dist[timm]'"
            ) from error
        return TimmNetwork(config, len(classes), MEAN_COLOR)
    per_domain, per_picture = config.batch_norm == "per_domain", config.normalise_over == "picture"
    return DeepLab(config.architecture, len(classes), config.auxiliary_head, per_domain, per_picture)


def file_of(network: str) -> str:
    """Return the name of a network's file in a checkpoint."""
    return f"{network}.safetensors"


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _prune(run: Path, newest_step: int, options: settings.Checkpoints, best: int | None) -> None:
    """Remove what neither the settings nor the best step keep of the checkpoints up to the newest one."""
    done = [folder for folder in checkpoint_folders(run) if step_of(folder) <= newest_step]
    for folder in done[: -options.keep_newest]:
        is_every = options.keep_every and step_of(folder) % options.keep_every == 0
        if not is_every and step_of(folder) != best:
            _remove(folder)
    for left in (run / "checkpoints").glob(f"step-*{PARTIAL_SUFFIX}"):
        # What a killed program left; no other writes into this folder now.
        _remove(left)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        # What it leads to was put there by hand.
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
