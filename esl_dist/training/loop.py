"""The training loop: one for every method, on one rank or many, from the first step or from where a run stopped."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from esl_dist import config as settings
from esl_dist.adaptation.methods import Method
from esl_dist.adaptation.optimisers import polynomial_rate, set_rates
from esl_dist.config_files import save_config, to_dictionary
from esl_dist.errors import StoppedError, UserError
from esl_dist.files import refuse_as_name
from esl_dist.models.batch_norm import copied_statistics, put_back_statistics
from esl_dist.models.weight_files import digest_of_weights, write_weights
from esl_dist.models.weights import published_state
from esl_dist.ranks.collectives import (
    is_main,
    print_on_main,
    rank,
    require_same_on_ranks,
    sum_over_ranks,
    wait_for_all,
    world_size,
)
from esl_dist.ranks.session import Ranks
from esl_dist.reporting.progress import Entry, show_entry, steps_bar
from esl_dist.runs.async_save import BackgroundSaver
from esl_dist.runs.checkpoints import (
    RUN_CONFIG,
    Checkpoint,
    checkpoint_folders,
    load_newest,
    set_aside_after,
)
from esl_dist.runs.folder_lock import lock_folder
from esl_dist.runs.provenance import description_of, provenance_of
from esl_dist.runs.run_record import RunRecord
from esl_dist.training.account import Outcome, beginning, end, logs_of
from esl_dist.training.data import (
    CorruptSamples,
    TrainingData,
    local_replaced,
    open_training_data,
    own_micro_batches,
    run_name,
)
from esl_dist.training.log import EMPTY_INTERVAL, Interval, TrainingLog
from esl_dist.training.optimisation import Updating, plain_updating
from esl_dist.training.setup import State, agreed_seed, build_state, check_training, fill_from, run_folder
from esl_dist.training.sizes import refuse_impossible_sizes
from esl_dist.training.step import MicroBatch, Precision, add_gradients, local_valid_pixels
from esl_dist.training.stop_request import StopRequest
from esl_dist.training.zero import divided_updating

EXPORTED_WEIGHTS = ("weights.safetensors", "weights.pth")


@dataclass(frozen=True)
class Training:
    """What a training is made of when its steps begin."""

    config: settings.Train
    method: Method
    data: TrainingData
    state: State
    updating: Updating
    ranks: Ranks
    run: Path


def train(config: settings.Train, ranks: Ranks, request: StopRequest, record: RunRecord) -> Path:
    """Train to `config.steps`, going on from the run's newest whole checkpoint; returns the run's folder.

    It holds config.yaml, run.json, checkpoints/, and in the end the network under its published names, in two forms:
    weights.safetensors and weights.pth.

    Args:
        config: the run's settings.
        ranks: the processes that train it.
        request: whether this process was asked to stop, be it before training begins.
        record: what notes, in run.json, this start and how far it came.

    Raises:
        UserError: settings that cannot be, shards that do not fit, a run of the same name that has other settings, is
            being trained or has no checkpoint that can be used, or losses, weights or gradients that are no numbers any
            more.
        StoppedError: some rank was asked to stop; the step was finished and saved.
    """
    method = check_training(config)
    require_same_on_ranks(str(to_dictionary(config)), "configuration")
    data = open_training_data(config, method)
    require_same_on_ranks(str(data.fingerprints), "shards")
    refuse_impossible_sizes(config, method, data, ranks.device)
    config = replace(config, name=config.name or run_name(config, data))
    refuse_as_name(str(config.name), "name")
    run = run_folder(config)
    config = replace(config, seed=agreed_seed(run) if config.seed is None else config.seed)
    begun = bool(checkpoint_folders(run))
    # Before the claim, which makes the folder: weights that do not fit leave nothing behind.
    state = build_state(config, method, data.classes, ranks.device, with_start=not begun)
    lock_folder(run, "name")
    checkpoint = load_newest(run)
    if begun != (checkpoint is not None):
        raise UserError(f"{run}: its checkpoints came or went during the start; start again")
    if checkpoint is not None:
        fill_from(run, checkpoint, config, data, state)
    # Before DeepSpeed gives all ranks those of rank 0.
    for network in (state.networks.segmentation, state.networks.discriminators):
        require_same_on_ranks(digest_of_weights(network.state_dict()), "weights to start from")
    training = Training(config, method, data, state, _updating(state, ranks), ranks, run)
    step, counts, interval = 0, {}, EMPTY_INTERVAL
    before = precision = ranks.precision
    if checkpoint is not None:
        before = checkpoint.training.get("precision", precision)
        step, counts = checkpoint.step, checkpoint.training.get("corrupt_samples", {})
        interval = checkpoint.training.get("journal", EMPTY_INTERVAL)
        training.updating.load(checkpoint.training["optimizers"])
        if ranks.scaler is not None and checkpoint.training["scaler"]:
            ranks.scaler.load_state_dict(checkpoint.training["scaler"])
    require_same_on_ranks(str(step), "checkpoint")
    if step >= config.steps:
        fewer = f", though only {config.steps} were asked for now" if step > config.steps else ""
        print_on_main(f"{config.name}: finished already, at step {step}{fewer}")
        _export(training, step, before)
        return run
    if is_main():
        set_aside_after(run, step)
        save_config(config, run / RUN_CONFIG)
    print_on_main(beginning(config, data, ranks, run, step))
    if before != precision:
        print_on_main(f"{config.name}: precision {before} until here, {precision} from here on")
    record.begin(run, ranks, step)
    corrupt = CorruptSamples(data, config.batch_size, config.loader.skip_corrupt, counts)
    outcome = _loop(training, step, corrupt, interval, request, record)
    if outcome.stopped:
        raise StoppedError(f"{config.name}: saved at step {outcome.step}", outcome.interrupted)
    _export(training, outcome.step, precision)
    print_on_main(end(config, data, run, EXPORTED_WEIGHTS, outcome))
    return run


def _export(training: Training, step: int, precision: str) -> None:
    """Write the network under its published names, with what it was trained on and how."""
    if is_main():
        state = training.state.networks.segmentation
        done = _checkpoint(step, training.config, training.data, training.state, {"precision": precision})
        for name in EXPORTED_WEIGHTS:
            write_weights(training.run / name, published_state(state), description_of(provenance_of(done)))


def _updating(state: State, ranks: Ranks) -> Updating:
    if ranks.zero_stage is None:
        return plain_updating(state.optimizers, ranks.scaler)
    if ranks.precision == "fp16":
        raise UserError(
            "mixed precision fp16 is not supported with DeepSpeed: each of its engines would scale losses and skip "
            "steps on its own; choose bf16, or start without DeepSpeed"
        )
    by_optimizer: dict[str, nn.Module] = {
        "segmentation": state.networks.segmentation,
        "discriminators": state.networks.discriminators,
    }
    return divided_updating(by_optimizer, state.optimizers, ranks.zero_stage, world_size())


def _loop(
    training: Training,
    first_step: int,
    corrupt: CorruptSamples,
    interval: Interval,
    request: StopRequest,
    record: RunRecord,
) -> Outcome:
    """Train from `first_step` to the end, or to the step after which all ranks stop because one was asked to."""
    config, data, state, ranks, run = training.config, training.data, training.state, training.ranks, training.run
    precision, scaler = Precision(ranks.autocast, training.updating.backward), ranks.scaler
    saver = BackgroundSaver(run, config.checkpoints) if is_main() else None
    images_a_step = (1 if data.target is None else 2) * config.batch_size
    journal = TrainingLog(logs_of(config, run) if is_main() else None, first_step, images_a_step, interval)
    bar = steps_bar(first_step, config.steps, run.name) if is_main() else None
    began, means = time.monotonic(), {}
    with closing(own_micro_batches(config, data, first_step, ranks.device)) as passes:
        for step in range(first_step, config.steps) if bar is None else bar:
            rates = set_rates(state.optimizers, step, config.optimizer)
            step_passes = [next(passes) for _ in range(config.accumulate)]
            valid_pixels, replaced, stop, interrupted = _agree(step_passes, config, request, f"step {step + 1}")
            request.has_begun = True
            corrupt.add(step, replaced)
            # An overflow that makes all networks skip the step has spoiled the statistics by then.
            statistics = copied_statistics(state.networks.segmentation) if scaler is not None else []
            losses = add_gradients(
                state.networks, training.method, config.method, step_passes, valid_pixels, config.batch_size, precision
            )
            updated = training.updating.update(f"{config.name}, step {step + 1}")
            if not updated:
                put_back_statistics(state.networks.segmentation, statistics)
            journal.add(losses, updated)
            done = step + 1
            record.step = done
            last = done == config.steps
            log = last or done % config.log_every == 0
            save = last or stop or done % config.checkpoints.every == 0
            if log or save:
                means = journal.mean_losses()
                of_losses = {f"the loss {name}": torch.tensor(mean) for name, mean in means.items()}
                _refuse_not_finite(of_losses, done, config, scaler)
            if save:
                # On every rank, so that all of them say the same.
                _refuse_not_finite(state.networks.segmentation.state_dict(), done, config, scaler)
                _refuse_not_finite(state.networks.discriminators.state_dict(), done, config, scaler)
            if log:
                speed = journal.write(means, rates, corrupt.totals(), done)
                if bar is not None:
                    rate = polynomial_rate(config.optimizer.learning_rate, step, config.optimizer)
                    left = (config.steps - done) * images_a_step / speed
                    show_entry(bar, Entry(done, means, rate, speed, left), run.name, config.steps)
            if config.pictures_every and done % config.pictures_every == 0:
                journal.draw(state.networks.segmentation, step_passes[-1], data.classes, done)
            if saver is not None:
                saver.raise_failure()
            if save:
                # Both are gathered from all ranks.
                states, collected = training.updating.states(), journal.interval()
                if saver is not None:
                    kept = _training_state(states, ranks, corrupt, collected)
                    saver.save(_checkpoint(done, config, data, state, kept))
            if stop:
                break
    if bar is not None:
        bar.close()
    if saver is not None:
        saver.finish()
    journal.close()
    for domain, count in corrupt.totals().items():
        print_on_main(f"{run.name}: {count} corrupt {domain} samples were replaced; the warnings name them")
    wait_for_all()
    return Outcome(done, done < config.steps, interrupted, means, done - first_step, time.monotonic() - began)


def _agree(
    passes: Sequence[MicroBatch], config: settings.Train, request: StopRequest, place: str
) -> tuple[Tensor, Tensor, bool, bool]:
    """Sum over the ranks, at once, all that has to be known before a step.

    Returns:
        labelled pixels of the global batch, int64 (2,); its samples that stand for corrupt ones, int64
        (2, batch_size); whether any rank was asked to stop; whether with Ctrl-C.

    Raises:
        UserError: ranks that are to do another number of steps than rank 0, before they part.
    """
    own_steps = torch.zeros(world_size(), dtype=torch.int64)
    own_steps[rank()] = config.steps
    own_wish = torch.tensor([int(request.asked), int(request.interrupted)])
    parts = [local_valid_pixels(passes), own_wish, own_steps, local_replaced(passes, config.batch_size).flatten()]
    valid_pixels, wishes, steps, replaced = torch.split(
        sum_over_ranks(torch.cat(parts), place), [len(part) for part in parts]
    )
    others = (steps != steps[0]).nonzero().flatten().tolist()
    if others:
        raise UserError(f"ranks {others} are to do another number of steps than rank 0; start all with the same")
    stop, interrupted = wishes.bool().tolist()
    return valid_pixels, replaced.reshape(2, config.batch_size), stop, interrupted


def _refuse_not_finite(
    values: Mapping[str, Tensor], step: int, config: settings.Train, scaler: GradScaler | None
) -> None:
    broken = [name for name, value in values.items() if not value.isfinite().all()]
    if broken:
        other_precision = "" if scaler is None else "go on with mixed precision bf16, or "
        raise UserError(
            f"{config.name}: by step {step} {broken[0]} is no finite number any more; {other_precision}start a run of "
            f"another name with a lower optimizer.learning_rate (now {config.optimizer.learning_rate})"
        )


def _training_state(
    optimizer_states: dict[str, Any], ranks: Ranks, corrupt: CorruptSamples, interval: Interval
) -> dict[str, Any]:
    return {
        "optimizers": optimizer_states,
        "precision": ranks.precision,
        "scaler": ranks.scaler.state_dict() if ranks.scaler is not None else {},
        "corrupt_samples": corrupt.state(),
        "journal": interval,
    }


def _checkpoint(
    step: int, config: settings.Train, data: TrainingData, state: State, training: dict[str, Any]
) -> Checkpoint:
    return Checkpoint(
        step=step,
        config=config,
        class_set=data.class_set,
        classes=data.classes,
        shards=data.fingerprints,
        segmentation=state.networks.segmentation.state_dict(),
        discriminators=state.networks.discriminators.state_dict(),
        training=training,
        data_sets=data.data_sets(),
    )
