"""Whether a training can run: its settings, shards and weights, and what of the machine it needs for its steps."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch

from esl_dist import config as settings
from esl_dist.adaptation.methods import METHODS
from esl_dist.data.cache import cache_of
from esl_dist.data.shards import open_shards
from esl_dist.data.workers import FILES_A_PROCESS
from esl_dist.doctor.findings import Finding, looked_at, problems_of, refused
from esl_dist.doctor.inputs import shards_of
from esl_dist.doctor.plan import Plan
from esl_dist.doctor.room import StateBytes, bytes_below, most_checkpoints, state_bytes
from esl_dist.doctor.this_machine import Place, gigabytes, place_at
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_name, refuse_unwritable
from esl_dist.machine import free_memory, usable_processors
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.ranks.rendezvous import FILES_A_RANK
from esl_dist.runs.checkpoints import build_network, checkpoint_folders, load_newest, run_config
from esl_dist.runs.layout import RUN_CONFIG
from esl_dist.training.compilation import refuse_without_compiler
from esl_dist.training.contradictions import needs_target, refuse_missing_start, refuse_unequal_shares
from esl_dist.training.data import TrainingData, open_training_data
from esl_dist.training.setup import automatic_name, load_start, refuse_other_run, run_folder
from esl_dist.training.sizes import (
    bytes_read_ahead,
    least_memory,
    refuse_full_memory,
    refuse_impossible_validation,
    refuse_untaken_sizes,
)
from esl_dist.training.validation import open_validation

THE_REST = Finding(
    "note",
    "the rest",
    "sizes, memory, fit of weights, room on the disk: not looked at before that is mended",
)


@dataclass(frozen=True)
class Asked:
    """A training that is asked about, whose shards are open.

    Attributes:
        config: its settings, with a name.
        data: what it reads.
        plan: how it is to run.
        network: the segmentation network, on the meta device.
        state: bytes of what it trains.
        run: its folder.
    """

    config: settings.Train
    data: TrainingData
    plan: Plan
    network: SegmentationNetwork
    state: StateBytes
    run: Path

    @property
    def is_begun(self) -> bool:
        """Whether there are checkpoints to go on from."""
        return bool(checkpoint_folders(self.run))


def findings_of_training(config: settings.Train, plan: Plan) -> list[Finding]:
    """Return what is found of a training, whose method is known; that its settings contradict nothing is another's."""
    places = shards_of(config)
    domains = len({"source.path", "target.path"} & places.keys())
    processes, readers = plan.launched.local_world_size, domains * config.loader.workers
    found = [
        looked_at("batch", partial(_batch, config, plan.launched.world_size)),
        *(looked_at(setting, partial(_opened, config, place)) for setting, place in places.items()),
    ]
    is_all_there = not problems_of(found[1:]) and (config.target.path != "" or not needs_target(config))
    found += [
        looked_at("open files", partial(enough_files, files_needed(config, plan, domains), *_open_files())),
        enough_processors(processes, readers, usable_processors()),
    ]
    if config.compile:
        found.append(looked_at("compile", partial(_compiled, plan.device)))
    if not is_all_there:
        return [*found, *_missing_start(config), THE_REST]
    subject = "shards"
    try:
        data = open_training_data(config, METHODS[config.method.name])
        subject = "network"
        asked = _asked(config, plan, data)
    except UserError as error:
        return [*found, Finding("problem", subject, str(error)), *_missing_start(config), THE_REST]
    return [*found, *_findings_with_data(asked)]


def _batch(config: settings.Train, world_size: int) -> str:
    refuse_unequal_shares(config, world_size)
    pictures = config.batch_size // (config.accumulate * world_size)
    return f"batch_size={config.batch_size}: {pictures} of each domain a process and pass"


def _asked(config: settings.Train, plan: Plan, data: TrainingData) -> Asked:
    named = replace(config, name=config.name or automatic_name(config, data))
    with torch.device("meta"):
        network = build_network(config.network, data.classes)
    return Asked(named, data, plan, network, state_bytes(config, data.classes), run_folder(named))


def _findings_with_data(asked: Asked) -> Iterator[Finding]:
    config = asked.config
    if config.validate_every and (config.validation.path or asked.data.target is not None):
        yield looked_at("validation", lambda: _validated(asked))
    yield looked_at("pictures", lambda: _pictures(asked))
    if ahead := bytes_read_ahead(config, asked.data, asked.plan.launched):
        yield Finding(
            "ok", "read ahead", f"at least {gigabytes(ahead)} a process, in the job's memory, not in /dev/shm"
        )
    yield looked_at("memory", lambda: _memory(asked))
    if asked.plan.gpus:
        free = min(torch.cuda.mem_get_info(number)[0] for number in range(asked.plan.launched.local_world_size))
        yield looked_at("GPU memory", lambda: enough_gpu_memory(asked.state, free))
    yield looked_at("weights", lambda: _start(asked))
    yield looked_at("run", lambda: _run(asked))
    yield looked_at("checkpoints", lambda: enough_room(asked, place_at(config.experiments)))


def _opened(config: settings.Train, place: str) -> str:
    cache = cache_of(config.cache.folder, config.cache.gigabytes, config.timeout_minutes, lambda: None)
    # How many may be lost is asked when all are open.
    shards = open_shards(place, whole=config.loader.skip_corrupt == 0, cache=cache)
    return f"{place}: {shards.index.dataset} {shards.index.split}, {len(shards)} samples"


def _validated(asked: Asked) -> str:
    samples = open_validation(asked.config, asked.data)
    assert samples is not None
    refuse_impossible_validation(asked.config.network, asked.data.classes, samples)
    return f"{len(samples)} pictures, {'with labels' if samples.labels else 'without labels'}"


def _pictures(asked: Asked) -> str | Finding:
    config, data = asked.config, asked.data
    refuse_untaken_sizes(config, METHODS[config.method.name], data, asked.network)
    words = f"of the classes {data.class_set}, {len(data.classes)} of them; every layer has pixels enough"
    fewest = min(len(one) for one in (data.source, data.target) if one is not None)
    if fewest < config.batch_size:
        return Finding("note", "pictures", f"{words}; {fewest} samples are fewer than batch_size={config.batch_size}")
    return Finding("ok", "pictures", words)


def _memory(asked: Asked) -> str | Finding:
    config, plan, state = asked.config, asked.plan, asked.state
    parts = (config, asked.data, asked.network, plan.device, plan.launched)
    refuse_full_memory(*parts)
    of_state = 0 if plan.gpus else state.checkpoint + state.gradients
    return enough_memory(
        least_memory(*parts) + of_state, plan.launched.local_world_size, state.checkpoint, free_memory()
    )


def enough_memory(of_process: int, processes: int, copy: int, free: float) -> str | Finding:
    """Hold what a step takes at least of the host's memory to what is free.

    Args:
        of_process: bytes of each process: pictures read ahead; on a processor those of a step, and the state.
        processes: on this machine.
        copy: bytes of the state, which one process copies to write a checkpoint beside training.
        free: bytes.

    Raises:
        UserError: they are more.
    """
    needed = of_process * processes
    words = f"at least {gigabytes(needed)} of the {gigabytes(free)} free, {gigabytes(of_process)} a process"
    if needed > free:
        raise UserError(f"{words}; give less to batch_size, sizes, loader.workers, or start fewer processes")
    if needed + copy > free:
        told = f"a checkpoint's copy of {gigabytes(copy)} does not fit beside it, so training would wait for the disk"
        return Finding("note", "memory", f"{words}; {told}")
    return f"{words}; what passes keep of a network is counted from below"


def enough_gpu_memory(state: StateBytes, free: int) -> str:
    """Hold what training has of its networks to a GPU's free bytes; of what passes keep, there is no estimate.

    Raises:
        UserError: it does not fit.
    """
    needed = state.checkpoint + state.gradients
    words = f"{gigabytes(needed)} for weights, gradients and optimisers, {gigabytes(free)} free"
    if needed > free:
        raise UserError(f"{words}; choose a smaller network.architecture, or a GPU with more memory")
    return f"{words}; what passes keep is not estimated"


def _start(asked: Asked) -> str | Finding:
    options = asked.config.network
    if asked.is_begun:
        return "those of the run, which goes on"
    if options.pretrained:
        return Finding("note", "weights", "network.pretrained=true: fetched from timm's hub at the start, unless kept")
    if options.start is None:
        return Finding("note", "weights", "random ones (no network.start)")
    refuse_missing_start(Path(options.start))
    report = load_start(build_network(options, asked.data.classes), options, asked.data.classes)
    kept = f", {len(report.missing)} tensors of the network keep random values" if report.missing else ""
    return f"{options.start}: fits{kept}"


def _missing_start(config: settings.Train) -> list[Finding]:
    start = config.network.start
    if start is None or (config.name and checkpoint_folders(run_folder(config))):
        return []
    return refused("weights", [partial(refuse_missing_start, Path(start))], f"{start}: there")


def _run(asked: Asked) -> str:
    config, run = asked.config, asked.run
    refuse_as_name(str(config.name), "name")
    if not asked.is_begun:
        refuse_unwritable("experiments", config.experiments, run)
        return f"{run}: a new one"
    if config.seed is None and (run / RUN_CONFIG).is_file():
        config = replace(config, seed=run_config(run).seed)
    begun = load_newest(run)
    if begun is None:
        raise UserError(f"{run}: its checkpoints came or went while they were looked at; ask again")
    refuse_other_run(run, begun, config, asked.data.fingerprints)
    return f"{run}: goes on from step {begun.step} of {config.steps}"


def enough_room(asked: Asked, disk: Place) -> str | Finding:
    """Hold the checkpoints and weights of a run to what is free where they are written.

    Raises:
        UserError: they are more than is free.
    """
    config, state = asked.config, asked.state
    number = most_checkpoints(config.steps, config.checkpoints, keeps_best=config.validate_every > 0)
    # Weights are written in two forms at the end; what the run has written before is overwritten or goes.
    needed = number * state.checkpoint + 2 * state.segmentation
    words = f"at most {number} of {gigabytes(state.checkpoint)} at a time and the weights, {gigabytes(needed)} in all"
    if disk.free is None:
        return Finding("note", "checkpoints", f"{words}; {disk.path} does not say how much is free")
    if needed > disk.free + bytes_below(asked.run):
        raise UserError(
            f"{disk.path}: {words}, and {gigabytes(disk.free)} are free; make room, give less to "
            "checkpoints.keep_newest, or a larger or no checkpoints.keep_every, or choose another experiments=…"
        )
    return words


def _compiled(device: torch.device) -> str:
    refuse_without_compiler(device)
    return "torch's compiler works"


def files_needed(config: settings.Train, plan: Plan, domains: int) -> int:
    """Return how many files a process opens beside what it has open: those of its readers and, of several ranks, each.

    Args:
        config: the training's settings.
        plan: how it is to run.
        domains: how many are read, each by readers of its own.
    """
    world_size, readers = plan.launched.world_size, config.loader.workers * (domains + (config.validate_every > 0))
    return FILES_A_PROCESS * readers + 1 + (FILES_A_RANK * world_size if world_size > 1 else 0)


def _open_files() -> tuple[int, int]:
    """Return how many files this process has open, and how many it may open; -1: any number."""
    return psutil.Process().num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def enough_files(further: int, open_now: int, most: int) -> str:
    """Hold the files that a process opens to their limit, -1 for none.

    Raises:
        UserError: they are more.
    """
    needed = open_now + further
    if 0 <= most < needed:
        raise UserError(
            f"a process opens some {needed} files, and may open {most}: raise the limit (ulimit -n), or give less to "
            "loader.workers"
        )
    return f"a process opens some {needed} files, and may open {most if most >= 0 else 'any number'}"


def enough_processors(processes: int, readers: int, usable: int) -> Finding:
    """Judge whether each process of this machine, and each that reads for it, has a processor."""
    wanted = processes * (1 + readers)
    words = f"{processes} computing, {processes * readers} reading, {usable} processors"
    if wanted > usable:
        return Finding("note", "processors", f"{words}: they take turns; fewer loader.workers may be as fast")
    return Finding("ok", "processors", words)
