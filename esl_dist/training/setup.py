"""Where a run begins or goes on: settings that fit, its folder and seed, networks and optimisers."""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS, Method, build_networks
from esl_dist.data.labels import ClassSet, class_names
from esl_dist.data.loading import Samples
from esl_dist.environment import LOCAL_RANK, MOST_RANKS, first_number, launch
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_name
from esl_dist.made_with import require_same
from esl_dist.models.memory_format import on_device
from esl_dist.models.segmentation import SegmentationNetwork, checkpoint_blocks
from esl_dist.models.weight_files import digest_of_weights
from esl_dist.models.weights import LoadReport, initialise, load_weights
from esl_dist.ranks.collectives import (
    is_main,
    noting_progress,
    print_on_main,
    require_same_on_ranks,
    sum_over_ranks,
    wait_for_all,
)
from esl_dist.ranks.session import Ranks
from esl_dist.runs.checkpoints import (
    Checkpoint,
    Manifest,
    build_network,
    checkpoint_folders,
    load_newest,
    run_config,
)
from esl_dist.runs.folder_lock import lock_folder
from esl_dist.runs.layout import RUN_CONFIG
from esl_dist.runs.trained import weights_and_provenance
from esl_dist.training.compilation import compile_segmentation, refuse_without_compiler
from esl_dist.training.contradictions import refuse_unequal_shares
from esl_dist.training.data import TrainingData, open_training_data, run_name
from esl_dist.training.optimisation import Updating
from esl_dist.training.sizes import refuse_impossible_sizes, refuse_impossible_validation
from esl_dist.training.validation import open_validation
from esl_dist.training.zero import DividedUpdating

MAY_CHANGE = frozenset(
    {
        "experiments",
        "source.path",
        "target.path",
        "pseudo_labels",
        "precision",
        "compile",
        "checkpoint_activations",
        "steps",
        "log_every",
        "validation.path",
        "validation.size",
        "validate_every",
        "pictures_every",
        "pictures_of",
        "trackers",
        "loader.workers",
        "loader.skip_corrupt",
        "cache.folder",
        "cache.gigabytes",
        "checkpoints.every",
        "checkpoints.keep_newest",
        "checkpoints.keep_every",
        "timeout_minutes",
    }
)
"""Settings in which a continued run may differ from its beginning.

None of them but `precision`, of which a line tells, and `compile`, by rounding, changes what a step computes from whole
samples: `steps` says where the run ends, and `loader.skip_corrupt` whether a corrupt sample ends it or is replaced.
Shards may have moved: their fingerprints decide whether they are the same.
"""


@dataclass(frozen=True)
class State:
    """What a step changes: networks, those that are trained with an optimiser of the same name."""

    networks: nn.ModuleDict
    optimizers: dict[str, Optimizer]


@dataclass(frozen=True)
class Training:
    """What a training is made of when its steps begin, or go on.

    Attributes:
        config: the run's settings, name and seed included.
        method: what makes its passes.
        data: what it reads.
        state: networks and optimisers.
        updating: how losses become new weights.
        ranks: the processes that train.
        run: the run's folder.
        validation: what it is validated on; None: nothing.
        first_step: steps done before.
        before: what the checkpoint that it goes on from says of the training besides its optimisers.
    """

    config: settings.Train
    method: Method
    data: TrainingData
    state: State
    updating: Updating | DividedUpdating
    ranks: Ranks
    run: Path
    validation: Samples | None = None
    first_step: int = 0
    before: Mapping[str, Any] = field(default_factory=dict)


def set_up(config: settings.Train, ranks: Ranks) -> Training:
    """Return the training that settings describe, gone on from the run's newest whole checkpoint if it has one.

    Raises:
        UserError: shards that do not fit, a run of the same name that has other settings, is
            being trained or has no checkpoint that can be used, ranks that were not given the same, or a compiler
            that is asked for and does not work.
    """
    refuse_unequal_shares(config, launch().world_size)
    if ranks.zero_stage is not None:
        refuse_with_deepspeed(config, ranks.precision)
    if config.compile:
        refuse_without_compiler(ranks.device)
    method = METHODS[config.method.name]
    require_same_on_ranks(str(asdict(config)), "configuration")
    data = open_training_data(config, method)
    require_same_on_ranks(str(data.fingerprints), "shards")
    validation = open_validation(config, data)
    refuse_impossible_sizes(config, method, data, ranks.device, launch())
    refuse_impossible_validation(config.network, data.classes, validation)
    config = replace(config, name=config.name or automatic_name(config, data))
    refuse_as_name(str(config.name), "name")
    run = run_folder(config)
    config = replace(config, seed=agreed_seed(run) if config.seed is None else config.seed)
    begun = bool(checkpoint_folders(run))
    # Before the lock, which makes the folder: weights that do not fit leave nothing behind.
    state = build_state(config, method, data.classes, ranks.device, with_start=not begun)
    lock_folder(run, "name")
    checkpoint = load_newest(run)
    if begun != (checkpoint is not None):
        raise UserError(f"{run}: its checkpoints came or went during the start; start again")
    if checkpoint is not None:
        fill_from(run, checkpoint, config, data, state)
    # Before DeepSpeed gives all ranks those of rank 0.
    for network in state.networks.values():
        require_same_on_ranks(digest_of_weights(network.state_dict()), "weights to start from")
    require_same_on_ranks(str(0 if checkpoint is None else checkpoint.step), "checkpoint")
    training = Training(config, method, data, state, _updating(state, ranks), ranks, run, validation)
    if config.compile:
        compile_segmentation(state.networks)
    if checkpoint is None:
        return training
    training.updating.load(checkpoint.training)
    before = {key: value for key, value in checkpoint.training.items() if key not in ("optimizers", "scaler")}
    return replace(training, first_step=checkpoint.step, before=before)


def refuse_with_deepspeed(config: settings.Train, precision: str) -> None:
    """Make sure that DeepSpeed can follow what is asked for.

    Raises:
        UserError: it cannot compile, or not scale losses.
    """
    if config.compile:
        raise UserError(
            "compile=true is not supported with DeepSpeed; choose compile=false, or start without DeepSpeed"
        )
    if precision == "fp16":
        raise UserError(
            "mixed precision fp16 is not supported with DeepSpeed: each of its engines would scale losses and skip "
            "steps on its own; choose bf16, or start without DeepSpeed"
        )


def _updating(state: State, ranks: Ranks) -> Updating | DividedUpdating:
    if ranks.zero_stage is None:
        return Updating(state.networks, state.optimizers, ranks.scaler)
    return DividedUpdating(state.networks, state.optimizers, ranks.zero_stage)


def automatic_name(config: settings.Train, data: TrainingData) -> str:
    """Return the name of a run that was given none; a run of the same seed keeps the name it was begun with.

    Before, such names did not tell the seed, and those of drawn seeds still do not.
    """
    unseeded = run_name(replace(config, seed=None), data)
    begun = run_folder(replace(config, name=unseeded))
    is_same = (begun / RUN_CONFIG).is_file() and run_config(begun).seed == config.seed
    return unseeded if is_same else run_name(config, data)


def run_folder(config: settings.Train) -> Path:
    """Return the folder of a run's configuration, checkpoints and weights."""
    assert config.name is not None
    return Path(config.experiments) / "snapshots" / config.name


def agreed_seed(run: Path) -> int:
    """Return the seed that the run was begun with or, at its beginning, a random one; the same on every rank."""
    own = run_config(run).seed if (run / RUN_CONFIG).is_file() else secrets.randbelow(2**32)
    return int(sum_over_ranks(torch.tensor(own if is_main() else 0, dtype=torch.int64)))


def build_state(
    config: settings.Train, method: Method, classes: ClassSet, device: torch.device, with_start: bool
) -> State:
    """Return networks with their initial weights, the same on every rank, and their optimisers.

    Args:
        config: the run's settings.
        method: which networks it adds, and how they are trained.
        classes: the class set.
        device: where the networks go.
        with_start: whether `network.start` is read; a run that goes on needs it no more.

    Raises:
        UserError: weights to start from that do not fit.
    """
    assert config.seed is not None
    torch.manual_seed(config.seed)
    segmentation = build_network(config.network, classes)
    initialise(segmentation)
    if with_start and config.network.start is not None:
        _tell(load_start(segmentation, config.network, classes), config.network.start)
    if with_start and config.network.pretrained:
        _start_from_hub(segmentation)
    networks = on_device(build_networks(method, segmentation, len(classes), config.method), device).train()
    if config.checkpoint_activations:
        checkpoint_blocks(networks)
    return State(networks, method.optimizers(networks, config.optimizer))


def load_start(network: SegmentationNetwork, options: settings.Network, classes: ClassSet) -> LoadReport:
    """Fill a network from the weights of `options.start`.

    Raises:
        UserError: they are not there, cannot be read, or do not fit.
    """
    start, without_heads = str(options.start), options.start_without == "heads"
    weights, known = weights_and_provenance(Path(start))
    if known is not None and not without_heads and class_names(known.classes) != class_names(classes):
        own, asked = (", ".join(class_names(one)) for one in (known.classes, classes))
        raise UserError(
            f"{start}: its classes are {own}, this run's {asked}; take all but its classifiers with "
            "network.start_without=heads, or choose its class_set"
        )
    return load_weights(network, weights, start, without_heads)


def _start_from_hub(network: SegmentationNetwork) -> None:
    from esl_dist.models.timm_networks import TimmNetwork, pretrained_weights  # for seconds

    assert isinstance(network, TimmNetwork)
    # One process of a machine fetches them, with one progress bar; the others find them in the hub's cache.
    is_first, origin = not first_number(LOCAL_RANK, 0, MOST_RANKS), f"pretrained {network.architecture}"
    with noting_progress():
        weights = pretrained_weights(network) if is_first else None
    wait_for_all()
    with noting_progress():
        weights = pretrained_weights(network) if weights is None else weights
    _tell(load_weights(network, weights, origin), origin)


def _tell(report: LoadReport, start: str) -> None:
    for names, what in (
        (report.missing, "keep their initial values"),
        (report.left_out, "are left out as asked"),
        (report.left_over, "find no place"),
    ):
        if names:
            print_on_main(f"{start}: {len(names)} tensors {what}: {_by_module(names)}")
    if report.converted:
        print_on_main(f"{start}: {report.converted}")


def _by_module(names: list[str]) -> str:
    counts = Counter(_module(name) for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def _module(name: str) -> str:
    """Return the beginning of a tensor's name that says which part of a network it is of."""
    # All of timm's but the heads begin alike.
    return ".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1])


def fill_from(run: Path, checkpoint: Checkpoint, config: settings.Train, data: TrainingData, state: State) -> None:
    """Fill the networks from a checkpoint of the run; the optimisers are filled after that.

    Raises:
        UserError: as `refuse_other_run`.
    """
    refuse_other_run(run, checkpoint, config, data.fingerprints)
    for name, network in state.networks.items():
        network.load_state_dict(checkpoint.networks[name])


def refuse_other_run(run: Path, begun: Manifest, config: settings.Train, fingerprints: Mapping[str, str]) -> None:
    """Make sure that settings and shards are those with which a run was begun, as far as they may not change.

    Args:
        run: its folder.
        begun: what one of its checkpoints says.
        config: the settings that are given now, name and seed included.
        fingerprints: of the shards that are given now.

    Raises:
        UserError: the run was begun with other settings, on other shards or under another name.
    """
    begun_as = str(begun.config.name)
    if begun_as != config.name:
        raise UserError(
            f"{run}: holds the run {begun_as}: its folder was renamed, or copied; to go on with it, give it back "
            f"the place {run.with_name(begun_as)} and start it as name={begun_as}; to begin another run, choose "
            "another name"
        )
    require_same(
        asdict(begun.config),
        asdict(config),
        f"{run}: this run was begun with other settings (begun with → given now):",
        f"give those that it was begun with, which are in its {RUN_CONFIG}, or choose another name",
        MAY_CHANGE,
    )
    if begun.shards != fingerprints:
        raise UserError(f"{run}: this run was begun on other shards than those it is given now; choose another name")
