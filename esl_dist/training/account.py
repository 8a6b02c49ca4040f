"""What a training is about to do, and what it made: told once at its beginning, and once at its end."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.adaptation.optimisers import scheduled_rate
from esl_dist.data.images import Size
from esl_dist.data.labels import class_names
from esl_dist.data.loading import Samples
from esl_dist.data.views import scaled
from esl_dist.ranks.collectives import world_size
from esl_dist.ranks.session import Ranks
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.progress import losses_line
from esl_dist.runs.checkpoints import checkpoint_folder, checkpoint_folders
from esl_dist.runs.layout import scoring_command
from esl_dist.runs.validations import Figures
from esl_dist.training.data import TrainingData
from esl_dist.training.optimisation import schedule_note
from esl_dist.training.unread import unread_settings


@dataclass(frozen=True)
class Outcome:
    """How far a start came.

    Attributes:
        step: steps done.
        stopped: whether a request to stop ended it.
        interrupted: whether that was a Ctrl-C.
        losses: means over the updates since the log's last entry, by name; those told at the end.
        best: the step that validations found best so far, and its figures; None: there is none.
        steps_of_start: steps done since the start.
        seconds: what they took.
    """

    step: int
    stopped: bool
    interrupted: bool
    losses: Mapping[str, float]
    steps_of_start: int
    seconds: float
    best: tuple[int, Figures] | None = None


def beginning(config: settings.Train, data: TrainingData, ranks: Ranks, run: Path, first_step: int) -> str:
    """Say what the training of `run` is about to do from `first_step` on."""
    facts = {
        "source": _domain(config.source, data.source),
        "target": "" if data.target is None else _domain(config.target, data.target),
        "pseudo-labels": config.pseudo_labels or "",
        "classes": f"{len(data.classes)} ({data.class_set})",
        **METHODS[config.method.name].account(config.method),
        "rare classes": _rare_classes(config.source.rare_classes, data),
        "batch": _batch(config, data),
        "network": _network(config, first_step),
        "schedule": f"{_rate(config)}; checkpoints every {_counted(config.checkpoints.every, 'step')}",
        "validations": _validations(config),
        "note": schedule_note(config.optimizer, config.steps),
        "without effect": ", ".join(unread_settings(config)),
        "device": _device(ranks.device),
        "seed": str(config.seed),
        "run": str(run),
        "curves": str(logs_of(config, run)),
    }
    return account(f"{config.name}: {_in_short(config, data, ranks)}, from step {first_step} to {config.steps}", facts)


def logs_of(config: settings.Train, run: Path) -> Path:
    """Return the folder of a run's TensorBoard files."""
    return Path(config.experiments) / "logs" / run.name


def _in_short(config: settings.Train, data: TrainingData, ranks: Ranks) -> str:
    method = config.method.name + (" with pseudo-labels" if config.pseudo_labels else "")
    target = "" if data.target is None else f" and {len(data.target)} target"
    return (
        f"{method} on {len(data.source)} source{target} samples, "
        f"{world_size()} process{'es' if world_size() > 1 else ''} on {ranks.device.type}, "
        f"precision {ranks.precision}" + (f", DeepSpeed ZeRO stage {ranks.zero_stage}" if ranks.zero_stage else "")
    )


def _domain(options: settings.TrainingShards, samples: Samples) -> str:
    index = samples.images.index
    read = samples.size_as_read
    width, height = read or (0, 0)
    size = f"{width}×{height}{'' if samples.size else ' as packed'}{_seen(options, read)}"
    return f"{options.path}: {index.dataset} {index.split}, {_counted(len(samples), 'sample')} at {size}"


def _seen(options: settings.TrainingShards, read: Size | None) -> str:
    """Say what is seen of pictures of the size `read`, where that is not all as it is; None: of several sizes."""
    least, greatest = options.scale
    scale = f"{least:g}" if least == greatest else f"{least:g} to {greatest:g}"
    parts = [
        f" × {scale}" if options.scale != [1.0, 1.0] else "",
        "" if options.crop is None else f", parts of {options.crop[0]}×{options.crop[1]}",
        _beyond(options, read),
        ", mirrored at random" if options.mirror else "",
    ]
    return "".join(parts)


def _beyond(options: settings.TrainingShards, read: Size | None) -> str:
    if options.crop is None or read is None:
        return ""
    width, height = options.crop
    most_width, most_height = scaled(read, options.scale[1])
    if width <= most_width and height <= most_height:
        return ""
    exchanged = " (are width and height exchanged?)" if height <= most_width and width <= most_height else ""
    return f", which no picture fills{exchanged}: what lies beyond is black"


def _rare_classes(options: settings.RareClasses, data: TrainingData) -> str:
    if data.rare_classes is None:
        return ""
    names = class_names(data.classes)
    left_out = [names[train_id] for train_id in data.rare_classes.left_out()]
    drawn = f"drawn more often, temperature {options.temperature:g}"
    if not left_out:
        return drawn
    return (
        f"{drawn}; no picture has more than source.rare_classes.least_pixels={options.least_pixels} pixels of "
        f"{', '.join(left_out)}: never drawn for themselves"
    )


def _batch(config: settings.Train, data: TrainingData) -> str:
    share = config.batch_size // (config.accumulate * world_size())
    passes = "" if config.accumulate == 1 else f" in each of {config.accumulate} passes"
    domains = "the source" if data.target is None else "each domain"
    return f"{_counted(config.batch_size, 'sample')} of {domains} a step, {share} a process{passes}"


def _network(config: settings.Train, first_step: int) -> str:
    network = config.network
    start = f"weights of the checkpoint of step {first_step}" if first_step else _start(network)
    head = "" if network.auxiliary_head else "no "
    return f"{network.architecture}, {head}auxiliary head, {network.batch_norm} batch norm; {start}"


def _start(network: settings.Network) -> str:
    if network.pretrained:
        return f"timm's pretrained weights of {network.architecture}"
    if network.start is None:
        return "random weights (no network.start)"
    return f"weights of {network.start}" + (
        "" if network.start_without is None else f" without its {network.start_without}"
    )


def _validations(config: settings.Train) -> str:
    if not config.validate_every:
        return ""
    size = config.validation.size
    seen = "the size of the training" if size is None else f"{size[0]}×{size[1]}"
    when = f"every {_counted(config.validate_every, 'step')} and after the last"
    if config.validation.path:
        return f"{config.validation.path} at {seen}, {when}"
    no_best = "no step is the best without labels, checkpoints.keep_every=… keeps those to choose from"
    return f"{config.target.path}, labels not read, at {seen}, {when}" + (
        "" if config.checkpoints.keep_every else f"; {no_best}"
    )


def _rate(config: settings.Train) -> str:
    options = config.optimizer
    end = scheduled_rate(1, config.steps, options)
    begun = "" if options.warm_up_from is None else f" from {options.warm_up_from:g} of it"
    warm_up = f", approached over {_counted(options.warm_up_steps, 'step')}{begun}" if options.warm_up_steps else ""
    kind = {"sgd": "", "adamw": "AdamW, "}[options.kind]
    return f"{kind}learning rate {options.learning_rate:g}{warm_up}, at the end {100 * end:.3g} % of it"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def end(config: settings.Train, data: TrainingData, run: Path, weights: tuple[str, ...], outcome: Outcome) -> str:
    """Say what the training of `run` made, and what comes next."""
    domains = 1 if data.target is None else 2
    speed = domains * config.batch_size * outcome.steps_of_start / outcome.seconds
    folders = checkpoint_folders(run)
    facts = {
        "took": f"{duration(outcome.seconds)} for {_counted(outcome.steps_of_start, 'step')} of this start, "
        f"{speed:.3g} samples/s",
        "last losses": losses_line(outcome.losses),
        "weights": ", ".join(str(run / name) for name in weights),
        "checkpoints": f"{run / 'checkpoints'}: {', '.join(folder.name for folder in folders)}",
        "best step": "" if outcome.best is None else _best(run, *outcome.best),
        "curves": f"tensorboard --logdir {shlex.quote(str(logs_of(config, run).parent))}",
        "to score it": scoring_command(run),
        "to label": "" if data.target is None else _labelling(config, run),
    }
    return account(f"{config.name}: finished at step {outcome.step}", facts)


def _best(run: Path, step: int, figures: Figures) -> str:
    return f"{step}, {figures.line()}; {_word('checkpoint', checkpoint_folder(run, step))} stays"


def _labelling(config: settings.Train, run: Path) -> str:
    path = _word("target.path", config.target.path)
    return f"esl-dist pseudo-label {_word('checkpoint', run)} {path} output=…"


def _word(key: str, value: str | Path) -> str:
    return shlex.quote(f"{key}={value}")
