"""The pseudo-label job: thresholds over the whole target, labels in shards that line up with the target's.

Shards are cut into pieces of a few pictures; the ranks share the pieces that are still to do, one after another, so
that nothing depends on the number of ranks. They share a folder too: on several machines, one that all of them see.

1. Each rank predicts its pieces, one picture at a time: labels and 16-bit levels are counted and go to a tar a piece.
2. One sum gives every rank the same histograms, hence the same thresholds.
3. Each rank turns the pieces of its shards into pseudo-label shards; rank 0 writes histograms, the summary and, last,
   the index.

A job that is killed and started again keeps its whole pieces. Memory is that of a few pictures and one histogram.
"""

import shutil
from pathlib import Path
from typing import Any

from esl_dist import config as settings
from esl_dist.adaptation.pseudo_labels import thresholds
from esl_dist.data.images import as_size, same_aspect_ratio
from esl_dist.data.labels import class_names, identity_class_set
from esl_dist.data.loading import Samples, label_source
from esl_dist.data.shard_index import INDEX_NAME, ShardIndex, read_index, write_index
from esl_dist.data.shards import ShardReader
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.inference.labelling.histograms import bins_of, write_histograms
from esl_dist.inference.labelling.labels import LABELS, Rule, read_summary, summary_of, write_labels
from esl_dist.inference.labelling.levels import level_histograms
from esl_dist.inference.labelling.pieces import LabelJob, open_unfinished, read_entry
from esl_dist.made_with import require_same
from esl_dist.models.weight_files import digest_of_weights
from esl_dist.prediction.predictor import Predictor
from esl_dist.ranks.collectives import broadcast_flags, is_main, note_progress, wait_for_all
from esl_dist.runs.folder_lock import lock_folder
from esl_dist.stop_signals import keep_end

SUMMARY = "summary.json"


def label_job(config: settings.PseudoLabel, shards: ShardReader, predictor: Predictor) -> LabelJob:
    """Return the job that a configuration describes.

    Raises:
        UserError: there are no labels to compare with, or a label size of another aspect ratio than padded pictures.
    """
    trained, size, label_size = predictor.trained, predictor.size, as_size(config.label_size)
    labels = label_source(shards, trained.class_set, trained.classes) if config.compare_with_labels else None
    if shards.index.keep_aspect_ratio and label_size and (size is None or not same_aspect_ratio(size, label_size)):
        raise UserError(
            f"label_size={config.label_size} is impossible: {shards.index.dataset} keeps the aspect ratio of its "
            f"pictures, so it needs a target.size of the same aspect ratio, not {size and list(size)}"
        )
    bounds = {"entropy": config.entropy_floor, "confidence": config.confidence_ceiling}
    # The one that decides comes first.
    counted = [config.score, *(name for name in bounds if config.count_both_scores and name != config.score)]
    bounds = {name: bounds[name] for name in counted}
    made_with: dict[str, Any] = {
        "run": trained.name,
        "step": trained.step,
        "class_set": trained.class_set,
        "classes": class_names(trained.classes),
        "weights": digest_of_weights(trained.network.state_dict()),
        "target": shards.fingerprint(),
        "size": None if size is None else list(size),
        "label_size": config.label_size,
        "score": config.score,
        "bound": bounds[config.score],
        "compare_with_labels": config.compare_with_labels,
        "domain": predictor.statistics,
        "precision": predictor.precision,
        "device": predictor.device.type,
    }
    if config.count_both_scores:
        # Only then, for jobs begun before do not say.
        made_with |= {"count_both_scores": True, "other_bound": list(bounds.values())[1]}
    return LabelJob(
        predictor=predictor,
        target=Samples(shards, size, labels, label_size or size),
        frame=label_size or size or shards.index.image_size,
        bounds=bounds,
        made_with=made_with,
        output=Path(config.output),
        workers=Workers(config.workers, config.timeout_minutes, progress=note_progress),
    )


def write_pseudo_labels(job: LabelJob) -> dict[str, Any]:
    """Label the target and return the summary, which is also written; a finished job is not done again.

    Raises:
        UserError: the output folder holds pseudo-labels made otherwise or is being filled by another start.
    """
    if not _is_finished(job):
        lock_folder(job.output, "output")
    # Asked again: another start may have finished just before the lock.
    summary = _summary_of_finished(job) if _is_finished(job) else _label(job)
    keep_end()
    wait_for_all()
    if is_main():
        # Another start, which finds the index, may be removing it, too.
        shutil.rmtree(job.unfinished, ignore_errors=True)
    return summary


def _is_finished(job: LabelJob) -> bool:
    return all(broadcast_flags([(job.output / INDEX_NAME).exists()]))


def refuse_other_labels(job: LabelJob) -> None:
    """Make sure that the finished pseudo-labels in a job's folder are its own.

    Raises:
        UserError: they were made otherwise.
    """
    before, remedy = read_index(job.output).made_with, "choose another output or delete it"
    if "target" not in before:
        raise UserError(f"{job.output}: holds shards that are no pseudo-labels; {remedy}")
    require_same(before, job.made_with, f"{job.output}: holds pseudo-labels made with another", remedy)


def _summary_of_finished(job: LabelJob) -> dict[str, Any]:
    refuse_other_labels(job)
    return read_summary(job.output / SUMMARY, job.made_with["classes"])


def _label(job: LabelJob) -> dict[str, Any]:
    open_unfinished(job.unfinished, job.made_with)
    histograms = level_histograms(job)
    limits = thresholds(histograms[0], job.trusts[0], job.made_with["bound"])
    bins = [bins_of(*one) for one in zip(histograms, job.trusts, job.bounds.values(), strict=True)]
    compared = write_labels(job, Rule(limits, bins))
    summary = summary_of(job, histograms[0], limits, compared.confusion)
    if is_main():
        write_histograms(job, bins, histograms, None if job.target.labels is None else compared.right)
        write_json(job.output / SUMMARY, summary)
        write_index(job.output, _index(job))
    return summary


def _index(job: LabelJob) -> ShardIndex:
    trained, target = job.predictor.trained, job.target.images.index
    return ShardIndex(
        dataset=target.dataset,
        split=target.split,
        image_size=None,
        label_size=job.frame,
        keep_aspect_ratio=target.keep_aspect_ratio and job.frame is None,
        class_sets={trained.class_set: identity_class_set(trained.classes)},
        made_with=dict(job.made_with),
        shards=tuple(
            read_entry(job.unfinished, shard.name, [sample.key for sample in shard.samples], LABELS)
            for shard in target.shards
        ),
    )
