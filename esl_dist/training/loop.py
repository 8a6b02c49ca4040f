"""The training loop: one for every method, on one rank or many, from the first step or from where a run stopped."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.optimisers import set_rates
from esl_dist.adaptation.passes import SEGMENTATION, SHARE, MicroBatch, Normaliser, Precision
from esl_dist.config_files import save_config
from esl_dist.data.workers import Workers
from esl_dist.errors import StoppedError, UserError
from esl_dist.models.segmentation import SegmentationNetwork
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import published_state
from esl_dist.ranks.collectives import (
    GRADIENTS,
    BegunSum,
    begin_sum,
    is_main,
    note_progress,
    print_on_main,
    require_same_on_ranks,
    wait_for_all,
)
from esl_dist.ranks.fence import Fence
from esl_dist.ranks.session import Ranks
from esl_dist.runs.async_save import BackgroundSaver
from esl_dist.runs.checkpoints import Checkpoint, set_aside_after
from esl_dist.runs.layout import RUN_CONFIG
from esl_dist.runs.run_record import RunRecord
from esl_dist.runs.trained import description_of, provenance_of
from esl_dist.training.account import Outcome, beginning, end, logs_of
from esl_dist.training.agreement import Agreement, ComingStep, CorruptSamples, prepare
from esl_dist.training.data import Order, own_micro_batches
from esl_dist.training.drawing import Drawing
from esl_dist.training.log import EMPTY_INTERVAL, TrainingLog, open_curves
from esl_dist.training.setup import Training, set_up
from esl_dist.training.step import Contribution, add_gradients
from esl_dist.training.stop_request import StopRequest
from esl_dist.training.validation import Validator, validation_of
from esl_dist.training.work import peak_of

EXPORTED_WEIGHTS = ("weights.safetensors", "weights.pth")


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
        UserError: what `set_up` refuses, or losses, weights or gradients that are no numbers any more.
        StoppedError: some rank was asked to stop; the step was finished and saved.
    """
    training = set_up(config, ranks)
    config, run, step = training.config, training.run, training.first_step
    before = training.before.get("precision", ranks.precision)
    record.step = step
    if step >= config.steps:
        fewer = f", though only {config.steps} were asked for now" if step > config.steps else ""
        print_on_main(f"{config.name}: finished already, at step {step}{fewer}")
        if (validator := _validator(training, request)).is_due(step):
            log = _log(training)
            _validate_overdue(validator, training, log)
            # Its last losses are in the log of the start that made them.
            log.finish(step, config, (), None if validator.best is None else validator.best[1])
            log.close()
        _export(training, step, before)
        return run
    if is_main():
        set_aside_after(run, step)
        save_config(config, run / RUN_CONFIG)
    print_on_main(beginning(config, training.data, ranks, run, step))
    if before != ranks.precision:
        print_on_main(f"{config.name}: precision {before} until here, {ranks.precision} from here on")
    record.begin(run, ranks, step)
    outcome = _loop(training, request, record)
    if outcome.stopped:
        raise StoppedError(f"{config.name}: saved at step {outcome.step}", outcome.interrupted)
    _export(training, outcome.step, ranks.precision)
    print_on_main(end(config, training.data, run, EXPORTED_WEIGHTS, outcome))
    return run


def _loop(training: Training, request: StopRequest, record: RunRecord) -> Outcome:
    """Train to the end, or to the step after which all ranks stop because one was asked to."""
    config, data, run = training.config, training.data, training.run
    began, means = time.monotonic(), {}
    saver = BackgroundSaver(run, config.checkpoints)
    log, drawing = _log(training), Drawing(training)
    validator = _validator(training, request)
    _validate_overdue(validator, training, log)
    corrupt = CorruptSamples(
        data, config.batch_size, config.loader.skip_corrupt, training.before.get("corrupt_samples", {})
    )
    fence = Fence(training.ranks.device)
    with closing(_batches(training)) as read, closing(log.steps(config.steps)) as steps:
        batches = log.waited_for(read)
        coming = _prepare(training, batches, request, training.first_step + 1)
        agreed = coming.agreement()
        request.has_begun = True
        for step in steps:
            done = step + 1
            is_last = done == config.steps
            own = coming.begin(agreed)
            corrupt.add(step, agreed.replaced)
            rates = set_rates(training.state.optimizers, step, config.optimizer)
            log_now = is_last or done % config.log_every == 0
            with log.work.counted(step == training.first_step and _has_plain_passes(config)):
                losses, counts = _passes(training, own, agreed, measures=log_now)
            if step == training.first_step:
                # Sums of other names or shapes would wait for each other, or be of what does not belong together.
                kinds = {name: tuple(count.shape) for name, count in counts.items()}
                require_same_on_ranks(str(kinds), "set of counts in a step")
            sums = {name: begin_sum(count, GRADIENTS) for name, count in counts.items() if not name.startswith(SHARE)}
            # Read, copied and told to the others while the device still computes and gradients are on their way.
            if not is_last:
                coming = _prepare(training, batches, request, done + 1)
            updated = _update(training, done, sums)
            log.add(losses, updated, counts)
            fence.end_step()
            record.step = done
            # A request that comes after the next step's agreement has begun is granted one step later.
            if not is_last:
                agreed = coming.agreement()
            save_now = is_last or agreed.stop or done % config.checkpoints.every == 0
            validate_now = validator.is_due(done) and not agreed.stop
            if log_now or save_now or validate_now:
                means = log.mean_losses()
                _refuse_not_finite({f"the loss {name}": mean for name, mean in means.items()}, done, training)
            if log_now:
                log.write(done, means, rates, corrupt.totals(), training.updating.norms())
            saver.raise_failure()
            if save_now:
                _save(training, done, saver, _counts_kept(corrupt, log), validator.best_step)
            elif step == training.first_step:
                saver.copy(_checkpoint(training, done, training.updating.states()))
            # Behind the checkpoint: a failure here costs no step.
            if config.pictures_every and (is_last or done % config.pictures_every == 0):
                log.draw(done, drawing.rows())
            if validate_now:
                # Whatever becomes of the validation, the step is on the disk if it was to be.
                saver.finish()
                agreed = _validate_due(validator, done, log, agreed)
                if not save_now and (agreed.stop or validator.best_step == done):
                    _save(training, done, saver, _counts_kept(corrupt, log), validator.best_step)
            if agreed.stop:
                break
    saver.finish()
    stopped = done < config.steps or validator.is_due(done)
    if not stopped:
        log.finish(done, config, means, None if validator.best is None else validator.best[1])
    log.close()
    for domain, count in corrupt.totals().items():
        print_on_main(f"{run.name}: {count} corrupt {domain} samples were replaced; the warnings name them")
    wait_for_all()
    seconds = time.monotonic() - began
    steps_of_start = done - training.first_step
    return Outcome(done, stopped, agreed.interrupted, means, steps_of_start, seconds, validator.best)


def _log(training: Training) -> TrainingLog:
    config, data, run = training.config, training.data, training.run
    images = (1 if data.target is None else 2) * config.batch_size
    interval = training.before.get("journal", EMPTY_INTERVAL)
    curves = open_curves(config, logs_of(config, run), training.first_step)
    log = TrainingLog(curves, run.name, images, training.first_step, interval)
    log.measure_on(training.ranks.device, peak_of(training.ranks.device, training.ranks.precision))
    return log


def _has_plain_passes(config: settings.Train) -> bool:
    """Say whether passes are computed as they are written, none of their operations twice."""
    return not config.compile and not config.checkpoint_activations


def _validator(training: Training, request: StopRequest) -> Validator:
    config, samples, step = training.config, training.validation, training.first_step
    validation = None
    if samples is not None:
        workers = Workers(config.loader.workers, config.timeout_minutes, "loader.workers", note_progress)
        known = provenance_of(_checkpoint(training, step, {"precision": training.ranks.precision}))
        validation = validation_of(samples, training.state.networks, known, workers)
    return Validator(validation, config, training.run, step, request)


def _validate_overdue(validator: Validator, training: Training, log: TrainingLog) -> None:
    """Validate the step that a run goes on from, where a stop came before that.

    Raises:
        StoppedError: some rank was asked to stop again.
    """
    step = training.first_step
    if validator.is_due(step) and (finding := validator.validate(step, log)).figures is None:
        raise StoppedError(f"{training.config.name}: stopped before the validation of step {step}", finding.interrupted)


def _validate_due(validator: Validator, step: int, log: TrainingLog, agreed: Agreement) -> Agreement:
    """Validate a step; returns what the ranks agree on, who all stop where one was asked to meanwhile."""
    finding = validator.validate(step, log)
    if finding.figures is not None:
        return agreed
    return replace(agreed, stop=True, interrupted=finding.interrupted)


def _batches(training: Training) -> Generator[MicroBatch]:
    config = training.config
    assert config.seed is not None
    order = Order(config.seed, config.loader.shuffle_window, config.batch_size, config.accumulate)
    workers = Workers(config.loader.workers, config.timeout_minutes, "loader.workers", note_progress)
    return own_micro_batches(training.data, order, training.first_step, workers, training.ranks.device)


def _prepare(training: Training, batches: Iterator[MicroBatch], request: StopRequest, number: int) -> ComingStep:
    """Prepare the step of a number, counted from 1."""
    config = training.config

    def read() -> list[MicroBatch]:
        return [next(batches) for _ in range(config.accumulate)]

    return prepare(read, config.batch_size, config.steps, request, f"step {number}")


def _passes(training: Training, own: Sequence[MicroBatch], agreed: Agreement, measures: bool) -> Contribution:
    """Make this rank's passes; returns its losses and counts. `measures` has the norms of gradients known."""
    config, updating = training.config, training.updating
    updating.begin_step(measures)
    normaliser = Normaliser(agreed.valid_pixels, config.batch_size)
    precision = Precision(training.ranks.autocast, updating.backward)
    return add_gradients(training.state.networks, training.method, config.method, own, normaliser, precision)


def _update(training: Training, done: int, sums: Mapping[str, BegunSum]) -> bool:
    """Update the networks; returns whether they were."""
    updated = training.updating.update(f"{training.config.name}, step {done}")
    counts = {name: one.wait("what is counted in a step") for name, one in sums.items()}
    if updated:
        training.method.after_update(training.state.networks, done, counts, training.config.method)
    return updated


def _refuse_not_finite(values: Mapping[str, Tensor | float], step: int, training: Training) -> None:
    if not values:
        return
    # Asked for at once: a GPU is waited for a single time.
    finite = torch.stack([torch.as_tensor(value).isfinite().all() for value in values.values()]).tolist()
    if broken := [name for name, is_finite in zip(values, finite, strict=True) if not is_finite]:
        config = training.config
        other_precision = "" if training.ranks.scaler is None else "go on with mixed precision bf16, or "
        raise UserError(
            f"{config.name}: by step {step} {broken[0]} is no finite number any more; {other_precision}start a run of "
            f"another name with a lower optimizer.learning_rate (now {config.optimizer.learning_rate})"
        )


def _counts_kept(corrupt: CorruptSamples, log: TrainingLog) -> dict[str, Any]:
    return {"corrupt_samples": corrupt.state(), "journal": log.interval()}


def _save(training: Training, step: int, saver: BackgroundSaver, kept: dict[str, Any], best: int | None) -> None:
    """Begin to save a step; called on every rank, for states are gathered from all of them."""
    for network in training.state.networks.values():
        _refuse_not_finite(network.state_dict(), step, training)
    kept = {**training.updating.states(), **kept, "precision": training.ranks.precision}
    saver.save(_checkpoint(training, step, kept), best)


def _checkpoint(training: Training, step: int, kept: dict[str, Any]) -> Checkpoint:
    data, networks = training.data, training.state.networks
    return Checkpoint(
        step=step,
        config=training.config,
        class_set=data.class_set,
        classes=data.classes,
        shards=data.fingerprints,
        networks={name: network.state_dict() for name, network in networks.items()},
        training=kept,
        data_sets=data.data_sets(),
        packed_sizes=data.packed_sizes(),
    )


def _export(training: Training, step: int, precision: str) -> None:
    """Write the network under its published names, with what it was trained on and how."""
    if is_main():
        network = training.state.networks[SEGMENTATION]
        assert isinstance(network, SegmentationNetwork)
        description = description_of(provenance_of(_checkpoint(training, step, {"precision": precision})))
        for name in EXPORTED_WEIGHTS:
            write_weights(training.run / name, published_state(network), description)
