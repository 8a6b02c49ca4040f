"""The pseudo-label job: thresholds over the whole target, labels in shards that line up with the target's.

Shards are cut into pieces of a few pictures; the ranks share the pieces that are still to do, one after another, so
that nothing depends on the number of ranks. They share a folder too: on several machines, one that all of them see.

1. Each rank predicts its pieces, one picture at a time: labels and 16-bit levels go to a scratch tar a piece.
2. Each rank counts its part of the pieces; one sum gives every rank the same histograms, hence the same thresholds.
3. Each rank turns the pieces of its shards into pseudo-label shards; rank 0 writes the summary and, last, the index.

A job that is killed and started again keeps its whole pieces. Memory is one picture and one histogram.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esl_dist import config as settings
from esl_dist.adaptation.entropy import HIGHEST_LEVEL, class_histograms
from esl_dist.adaptation.pseudo_labels import (
    TRUST,
    Threshold,
    Trust,
    keep_trusted,
    kept_pixels,
    label_and_score,
    thresholds,
)
from esl_dist.checked import read_content
from esl_dist.data.images import (
    Size,
    as_size,
    encode_png,
    fitted_size,
    padded,
    resize_label,
    same_aspect_ratio,
)
from esl_dist.data.labels import IGNORE_INDEX, class_names, identity_class_set
from esl_dist.data.loading import Batch, Samples, batches
from esl_dist.data.shard_index import INDEX_NAME, ShardIndex, read_index, write_index
from esl_dist.data.shards import Members, ShardReader
from esl_dist.data.workers import Workers
from esl_dist.errors import UserError
from esl_dist.files import write_json
from esl_dist.inference.conditions import Conditions, statistics_of
from esl_dist.inference.ensemble import Member, confusion_matrix, scores_of_member
from esl_dist.inference.unfinished import (
    PREDICTION,
    SCRATCH,
    is_written,
    open_scratch,
    read_entry,
    read_predictions,
    write_tar,
)
from esl_dist.made_with import changed_keys, told_changes
from esl_dist.models.weight_files import digest_of_weights
from esl_dist.ranks.collectives import (
    broadcast_flags,
    is_main,
    note_progress,
    rank,
    sum_over_ranks,
    wait_for_all,
    world_size,
)
from esl_dist.reporting.progress import progress, silent
from esl_dist.reporting.scores import pixel_accuracy
from esl_dist.runs.folder_lock import lock_folder
from esl_dist.runs.load import TrainedNetwork

SUMMARY = "summary.json"
LABELS = ("label.png",)
"""What pseudo-label shards have of each sample."""
PIECE_SAMPLES = 8
"""Few, so that ranks wait little for the last piece; a tar and its entry a piece are written anyway."""

Item = TypeVar("Item")


def write_pseudo_labels(
    trained: TrainedNetwork,
    target: Samples,
    config: settings.PseudoLabel,
    device: torch.device,
    how: Conditions | None = None,
) -> dict[str, Any]:
    """Label the target and return the summary, which is also written; a finished job is not done again.

    Args:
        trained: its network is on `device`.
        target: the pictures at the network's size; with labels if `config.compare_with_labels`.
        config: the job's settings.
        device: where to compute.
        how: the conditions under which the network predicts; None: those of the target, in float32.

    Raises:
        UserError: the output folder holds pseudo-labels made otherwise or is being filled by another start, or a label
            size that padded pictures do not bear.
    """
    _refuse_other_frame(target, config)
    output = Path(config.output)
    how = how or Conditions("target", target.size, "no")
    made_with = _made_with(trained, target, config, how)
    if not _is_finished(output):
        lock_folder(output, "output")
    # Asked again: another start may have finished just before the claim.
    if _is_finished(output):
        return _summary_of(output, made_with)
    scratch = open_scratch(output, made_with)
    trust = TRUST[config.score]
    classes = len(trained.classes)

    _predict(Member(trained.network, 1.0, how.domain, how.precision), target, config, scratch, device)
    wait_for_all()
    histograms = torch.zeros(classes, HIGHEST_LEVEL + 1, dtype=torch.int64)
    for piece in _own(_pieces(target.images)):
        for _, labels, levels in _read_piece(scratch, piece, target.images, classes):
            histograms += class_histograms(labels, levels, classes)
    histograms = sum_over_ranks(histograms)
    limits = thresholds(histograms, trust, _bound(config))

    frame = _frame(target, config)
    own_confusion = _write_labels(target, output, limits, trust, scratch, classes, frame)
    summary = _summary(trained, config, histograms, limits, sum_over_ranks(own_confusion))
    if is_main():
        write_json(output / SUMMARY, summary)
        write_index(output, _index(target, trained, made_with, config, scratch))
        # Another start, which finds the index, may be removing it, too.
        shutil.rmtree(scratch, ignore_errors=True)
    wait_for_all()
    return summary


def _made_with(
    trained: TrainedNetwork, target: Samples, config: settings.PseudoLabel, how: Conditions
) -> dict[str, Any]:
    return {
        "run": trained.name,
        "step": trained.step,
        "class_set": trained.class_set,
        "classes": class_names(trained.classes),
        "weights": digest_of_weights(trained.network.state_dict()),
        "target": target.images.fingerprint(),
        "size": None if target.size is None else list(target.size),
        "label_size": config.label_size,
        "score": config.score,
        "bound": _bound(config),
        "compare_with_labels": config.compare_with_labels,
        "domain": statistics_of(trained, how),
        "precision": how.precision,
    }


def _bound(config: settings.PseudoLabel) -> float:
    return config.entropy_floor if config.score == "entropy" else config.confidence_ceiling


def _is_finished(output: Path) -> bool:
    return all(broadcast_flags([(output / INDEX_NAME).exists()]))


def _summary_of(output: Path, made_with: dict[str, Any]) -> dict[str, Any]:
    made_before = read_index(output).made_with
    changed = changed_keys(made_before, made_with)
    if changed:
        raise UserError(
            f"{output}: holds pseudo-labels made with another {told_changes(changed, made_before, made_with)}; choose "
            "another output or delete it"
        )
    summary = read_summary(output / SUMMARY, made_with["classes"])
    wait_for_all()
    if is_main():
        shutil.rmtree(output / SCRATCH, ignore_errors=True)
    return summary


def read_summary(file: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Read what a finished job says of its pseudo-labels.

    Args:
        file: summary.json.
        names: of the classes it has to be about; None: of any.

    Raises:
        UserError: it is missing, or not what `write_pseudo_labels` returned.
    """
    content = read_content(file, f"delete {file.parent} and label again")
    content.at("kept").number(0, 1)
    if (accuracy := content.at("accuracy")).value is not None:
        accuracy.number(0, 1)
    classes = content.at("classes")
    if not classes.mapping():
        classes.refuse("at least one class")
    if names is not None and list(classes.mapping()) != list(names):
        classes.refuse(f"the classes {', '.join(names)}, in this order")
    for _, one in classes.items():
        one.at("threshold").number(0, 1)
        predicted = one.at("pixels_predicted").whole_number()
        one.at("pixels_kept").whole_number(maximum=predicted)
    if content.at("score").text() not in TRUST:
        content.at("score").refuse(f"one of {', '.join(TRUST)}")
    summary: dict[str, Any] = content.value
    return summary


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring samples of one shard: the name of its scratch tar and the samples' positions."""

    name: str
    positions: range


def _pieces(reader: ShardReader) -> list[Piece]:
    return [piece for pieces in _pieces_by_shard(reader) for piece in pieces]


def _pieces_by_shard(reader: ShardReader) -> list[list[Piece]]:
    pieces_by_shard: list[list[Piece]] = []
    first = 0
    for shard in reader.index.shards:
        end = first + len(shard.samples)
        starts = range(first, end, PIECE_SAMPLES)
        pieces_by_shard.append(
            [Piece(f"piece-{start:09d}.tar", range(start, min(start + PIECE_SAMPLES, end))) for start in starts]
        )
        first = end
    return pieces_by_shard


def _own(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's part: every W-th item of W ranks."""
    return items[rank() :: world_size()]


@torch.inference_mode()
def _predict(
    member: Member, target: Samples, config: settings.PseudoLabel, scratch: Path, device: torch.device
) -> None:
    """Predict this rank's share of the pieces that are not there yet."""
    pieces = _pieces(target.images)
    missing = broadcast_flags([not is_written(scratch, scratch / piece.name) for piece in pieces])
    own = _own([piece for piece, is_missing in zip(pieces, missing, strict=True) if is_missing])
    positions = [position for piece in own for position in piece.positions]
    workers = Workers(config.workers, config.timeout_minutes)
    pictures = batches(target.without_labels(), ([one] for one in positions), workers, device.type == "cuda")

    def predict() -> Iterator[Members]:
        for batch in (progress if is_main() else silent)(pictures, len(positions), "predicting"):
            prediction = _prediction(member, batch, target, config, device)
            note_progress()
            yield prediction

    predictions = predict()
    for piece in own:
        keys = (target.images.key(position) for position in piece.positions)
        samples = zip(keys, islice(predictions, len(piece.positions)), strict=True)
        write_tar(scratch, scratch / piece.name, samples)


def _prediction(
    member: Member, batch: Batch, target: Samples, config: settings.PseudoLabel, device: torch.device
) -> Members:
    """Predict one picture: its labels and the levels of their scores, without padding, as PNG files."""
    images = batch["images"].to(device)
    width, height = as_size(config.label_size) or (images.shape[3], images.shape[2])
    logits = scores_of_member(member, images, target.images.where(int(batch["positions"][0])))
    labels, levels = label_and_score(logits, (height, width), TRUST[config.score])
    if target.images.index.keep_aspect_ratio:
        own_width, own_height = batch["own_sizes"][0].tolist()
        width, height = fitted_size((own_width, own_height), (width, height))
    return {
        PREDICTION[0]: encode_png(labels[0, :height, :width].cpu().numpy().astype(np.uint8)),
        PREDICTION[1]: encode_png(levels[0, :height, :width].cpu().numpy().astype(np.uint16)),
    }


def _read_piece(scratch: Path, piece: Piece, images: ShardReader, classes: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield key, predicted labels and levels (int32) of every picture of a piece."""
    keys = [images.key(position) for position in piece.positions]
    for prediction in read_predictions(scratch, piece.name, keys, classes):
        note_progress()
        yield prediction


def _refuse_other_frame(target: Samples, config: settings.PseudoLabel) -> None:
    """Make sure that labels of padded pictures are padded alike."""
    size, label_size = target.size, as_size(config.label_size)
    if not target.images.index.keep_aspect_ratio or label_size is None:
        return
    if size is None or not same_aspect_ratio(size, label_size):
        raise UserError(
            f"label_size={config.label_size} is impossible: {target.images.index.dataset} keeps the aspect ratio of "
            f"its pictures, so it needs a target.size of the same aspect ratio, not {size and list(size)}"
        )


def _frame(target: Samples, config: settings.PseudoLabel) -> Size | None:
    """Return the size of all pseudo-labels; None where each has that of its picture."""
    return as_size(config.label_size) or target.size or target.images.index.image_size


def _write_labels(
    target: Samples,
    output: Path,
    limits: list[Threshold],
    trust: Trust,
    scratch: Path,
    classes: int,
    frame: Size | None,
) -> Tensor:
    """Write this rank's pseudo-label shards; returns their confusion matrix with the target's labels, if it has any."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def pseudo_labels(pieces: list[Piece]) -> Iterator[tuple[str, Members]]:
        for piece in pieces:
            predictions = _read_piece(scratch, piece, target.images, classes)
            for position, (key, labels, levels) in zip(piece.positions, predictions, strict=True):
                pseudo_label = keep_trusted(labels, levels, limits, trust).numpy()
                if frame is not None:
                    _refuse_larger(pseudo_label, frame, scratch)
                    pseudo_label = padded(pseudo_label, frame, IGNORE_INDEX)
                if target.labels is not None:
                    confusion.add_(_compare(target.label(position), pseudo_label, classes))
                yield key, {LABELS[0]: encode_png(pseudo_label)}

    own = _own(list(zip(target.images.index.shards, _pieces_by_shard(target.images), strict=True)))
    for shard, pieces in (progress if is_main() else silent)(own, len(own), "labelling"):
        if not is_written(scratch, output / shard.name):
            write_tar(scratch, output / shard.name, pseudo_labels(pieces))
        elif target.labels is not None:
            # Written by an earlier start, which counted it, too; only the count is made up for.
            for _ in pseudo_labels(pieces):
                pass
    return confusion


def _refuse_larger(label: NDArray[np.uint8], frame: Size, scratch: Path) -> None:
    if label.shape[1] > frame[0] or label.shape[0] > frame[1]:
        raise UserError(f"{scratch}: its predictions are larger than {frame[0]}×{frame[1]}; delete it and start again")


def _compare(label: NDArray[np.uint8], pseudo_label: NDArray[np.uint8], classes: int) -> Tensor:
    resized = resize_label(label, (pseudo_label.shape[1], pseudo_label.shape[0]))
    return confusion_matrix(torch.from_numpy(resized), torch.from_numpy(pseudo_label), classes)


def _index(
    target: Samples, trained: TrainedNetwork, made_with: dict[str, Any], config: settings.PseudoLabel, scratch: Path
) -> ShardIndex:
    frame = _frame(target, config)
    return ShardIndex(
        dataset=target.images.index.dataset,
        split=target.images.index.split,
        image_size=None,
        label_size=frame,
        keep_aspect_ratio=target.images.index.keep_aspect_ratio and frame is None,
        class_sets={trained.class_set: identity_class_set(trained.classes)},
        made_with=made_with,
        shards=tuple(
            read_entry(scratch, shard.name, [sample.key for sample in shard.samples], LABELS)
            for shard in target.images.index.shards
        ),
    )


def _summary(
    trained: TrainedNetwork,
    config: settings.PseudoLabel,
    histograms: Tensor,
    limits: list[Threshold],
    confusion: Tensor,
) -> dict[str, Any]:
    predicted = [int(count) for count in histograms.sum(1)]
    kept = kept_pixels(histograms, limits, TRUST[config.score])
    return {
        "score": config.score,
        "kept": sum(kept) / max(sum(predicted), 1),
        "accuracy": pixel_accuracy(confusion.numpy()),
        "classes": {
            name: {"threshold": limit.score, "pixels_predicted": one_predicted, "pixels_kept": one_kept}
            for name, limit, one_predicted, one_kept in zip(
                class_names(trained.classes), limits, predicted, kept, strict=True
            )
        },
    }
