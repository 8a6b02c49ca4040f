"""Whether pseudo-labels or scores can be made: settings, shards, networks, and room for what is written."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from esl_dist.config import Evaluate, PseudoLabel
from esl_dist.data.cache import cache_of
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import open_shards
from esl_dist.doctor.findings import Finding, looked_at, problems_of, refused
from esl_dist.doctor.inputs import shards_of
from esl_dist.doctor.plan import Plan
from esl_dist.doctor.room import bytes_below
from esl_dist.doctor.this_machine import Place, gigabytes, place_at
from esl_dist.errors import UserError
from esl_dist.files import refuse_unwritable
from esl_dist.inference.contradictions import checks_of_labelled, checks_of_scored, networks_of
from esl_dist.inference.evaluation import refuse_unlabelled
from esl_dist.inference.inputs import Inputs, open_inputs, with_common_size
from esl_dist.inference.labelling.job import label_job, refuse_other_labels
from esl_dist.inference.labelling.pieces import LabelJob, room_of_pieces
from esl_dist.inference.scoring import labels_for, refuse_statistics, refuse_unlike
from esl_dist.prediction.predictor import Predictor

THE_REST = Finding("note", "the rest", "networks and room on the disk: not looked at before that is mended")


def findings_of_labelling(config: PseudoLabel, plan: Plan, is_sound: bool) -> list[Finding]:
    """Return what is found of a pseudo-label job.

    Args:
        config: its settings.
        plan: how it is to run.
        is_sound: whether they contradict nothing; else only what stands by itself is looked at.
    """
    found = [*_shards(config), *refused("inputs", checks_of_labelled(config), "all there")]
    if problems_of(found) or not is_sound:
        return [*found, THE_REST]
    try:
        inputs = open_inputs(config.target, config, plan.device)
        job = label_job(config, inputs.shards, inputs.load(config.checkpoint))
    except UserError as error:
        return [*found, Finding("problem", "network", str(error))]
    trained = job.predictor.trained
    words = f"{config.checkpoint}: {trained.architecture}, {trained.class_set}"
    return [*found, Finding("ok", "network", words), looked_at("output", lambda: _output(job))]


def _output(job: LabelJob) -> str | Finding:
    if (job.output / INDEX_NAME).exists():
        refuse_other_labels(job)
        return f"{job.output}: made already"
    kept = bytes_below(job.unfinished)
    return enough_room(job.frame, len(job.target), kept, place_at(str(job.output)), len(job.bounds))


def enough_room(frame: tuple[int, int] | None, pictures: int, kept: int, disk: Place, scores: int = 1) -> str | Finding:
    """Hold the predictions that lie in `output` until a job is finished to what is free there.

    Args:
        frame: width and height of all; None: each has its own, and nobody knows what they take.
        pictures: how many there are.
        kept: bytes of those that an earlier start has left, which stay or go.
        disk: the place of the output.
        scores: how many scores are counted.

    Raises:
        UserError: they are more than is free.
    """
    if frame is None or disk.free is None:
        return Finding("note", "output", f"{disk.path}: what predictions take, or what is free there, is not known")
    needed = room_of_pieces(frame, pictures, scores)
    words = f"{gigabytes(needed)} for the predictions of {pictures} pictures until the job is finished"
    if needed > disk.free + kept:
        raise UserError(
            f"{disk.path}: {words}, and {gigabytes(disk.free)} are free; make room, or choose an output on a larger "
            "disk"
        )
    return f"{disk.path}: {words}, {gigabytes(disk.free)} free"


def findings_of_evaluation(config: Evaluate, plan: Plan, is_sound: bool) -> list[Finding]:
    """Return what is found of an evaluation; for its arguments see `findings_of_labelling`."""
    found = [*_shards(config), *_places(config)]
    found += refused("inputs", checks_of_scored(config), "all there") if is_sound else []
    if problems_of(found) or not is_sound:
        return [*found, THE_REST]
    try:
        inputs = open_inputs(config.data, config, plan.device)
        refuse_unlabelled(config, inputs.shards)
    except UserError as error:
        return [*found, Finding("problem", "data", str(error))]
    if config.mode == "best" and config.wait_minutes:
        return [*found, Finding("note", "network", "waited for: not looked at")]
    places = [str(config.checkpoint)] if config.mode == "best" else networks_of(config)
    ensemble = list[Predictor]()
    found += [looked_at("network", partial(_loaded, inputs, place, ensemble)) for place in places]
    if problems_of(found):
        return found
    fits = partial(_refuse_unfit, config, inputs, with_common_size(ensemble))
    return [*found, *refused("fit", [fits], "networks and pictures fit each other")]


def _loaded(inputs: Inputs, place: str, ensemble: list[Predictor]) -> str:
    """Load a network, and add it to the ensemble."""
    ensemble.append(inputs.load(place))
    trained = ensemble[-1].trained
    return f"{place}: {trained.architecture}, {trained.class_set}"


def _refuse_unfit(config: Evaluate, inputs: Inputs, ensemble: Sequence[Predictor]) -> None:
    """Refuse what an evaluation refuses of networks beside their labels, each other, and statistics."""
    refuse_unlike(ensemble)
    labels_for(ensemble[0].trained, inputs.shards)
    if config.statistics_from is not None:
        statistics = open_shards(config.statistics_from, cache=inputs.cache)
        for one in ensemble:
            refuse_statistics(one, statistics)


def _places(config: Evaluate) -> Iterator[Finding]:
    folders = {
        "output": None if config.output is None else Path(config.output).absolute().parent,
        "predictions": None if config.predictions is None else Path(config.predictions),
    }
    for setting, folder in folders.items():
        if folder is not None:
            check = partial(refuse_unwritable, setting, str(folder), folder)
            yield from refused(setting, [check], f"{folder}: can be written")


def _shards(config: PseudoLabel | Evaluate) -> list[Finding]:
    cache = cache_of(config.cache.folder, config.cache.gigabytes, config.timeout_minutes, lambda: None)

    def look(place: str) -> str:
        shards = open_shards(place, cache=cache)
        return f"{place}: {shards.index.dataset} {shards.index.split}, {len(shards)} samples"

    return [looked_at(setting, partial(look, place)) for setting, place in shards_of(config).items()]
