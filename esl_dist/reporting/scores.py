"""Scores of a segmentation from its confusion matrix, and the tables that show them.

IoU = TP / (TP + FP + FN) per class; mIoU is its mean over the classes that occur, in labels or predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esl_dist.checked import Content, Share, read
from esl_dist.data.labels import CITYSCAPES_13, CITYSCAPES_16, CITYSCAPES_19


def intersection_over_union(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each class, shape (classes,), in [0, 1]; NaN for a class that does not occur.

    Args:
        confusion: pixels by label (rows) and prediction (columns), shape (classes, classes).
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou: NDArray[np.float64] = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return iou


def mean_iou(iou: NDArray[np.float64]) -> float:
    """Return the mean over classes that occur; NaN if none does."""
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")


def pixel_accuracy(confusion: NDArray[np.int64]) -> float | None:
    """Return the share of pixels whose prediction is their label; None without pixels."""
    total = int(confusion.sum())
    return float(np.trace(confusion) / total) if total else None


def scores_of(confusion: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, Any]:
    """Return `miou`, `iou` by class name and `accuracy` as fractions, None where a class does not occur.

    `miou_over` holds the means over 19, 16 and 13 classes of Cityscapes, as far as `class_names` has them all.
    """
    iou = intersection_over_union(confusion)
    position = {name: place for place, name in enumerate(class_names)}
    return {
        "miou": _or_none(mean_iou(iou)),
        "miou_over": {
            str(len(names)): _or_none(mean_iou(iou[[position[name] for name in names]]))
            for names in (CITYSCAPES_19, CITYSCAPES_16, CITYSCAPES_13)
            if position.keys() >= set(names)
        },
        "iou": {name: _or_none(float(value)) for name, value in zip(class_names, iou, strict=True)},
        "accuracy": pixel_accuracy(confusion),
    }


@dataclass(frozen=True)
class ScoreEntries:
    """What scores hold, as `scores_of` makes them."""

    miou: Share | None
    iou: dict[str, Share | None]
    miou_over: dict[str, Share | None] = field(default_factory=dict)
    accuracy: Share | None = None


def scores_from(content: Content) -> dict[str, Any]:
    """Return scores as `scores_of` makes them, and what else is kept with them.

    Their `confusion`, pixels by label and prediction, is there if the program that wrote them knew it.

    Raises:
        UserError: a score is no share, or the confusion matrix is not one of their classes.
    """
    classes = len(read(content, ScoreEntries).iou)
    if (confusion := content.get("confusion")) is not None:
        if len(confusion.entries()) != classes:
            confusion.refuse(f"a row for each of the {classes} classes")
        for row in confusion.entries():
            row.whole_numbers(classes)
    scores: dict[str, Any] = content.value
    return scores


def score_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out scores (`scores_of`) as a table in percent.

    There is a line for each entry of `rows`, a column for each class, the mean, and each mean over fewer classes.
    """
    first = next(iter(rows.values()))
    names = list(first["iou"])
    fewer = [count for count in first.get("miou_over", {}) if int(count) < len(names)]
    lines = [["", *names, "mIoU", *(f"mIoU {count}" for count in fewer)]]
    for title, scores in rows.items():
        means = [scores["miou"], *(scores["miou_over"][count] for count in fewer)]
        lines.append([title, *map(percent, [*(scores["iou"][name] for name in names), *means])])
    return _aligned(lines)


def kept_table(classes: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out what pseudo-labels keep: a line a class, with its pixels, shares in percent and threshold.

    Args:
        classes: name → `pixels_predicted`, `pixels_kept` and `threshold`, as in the summary of pseudo-labels.
    """
    total = sum(row["pixels_predicted"] for row in classes.values())
    lines = [["", "predicted", "share %", "kept", "kept %", "threshold"]]
    for name, row in classes.items():
        predicted, kept = row["pixels_predicted"], row["pixels_kept"]
        shares = (percent(predicted / total if total else None), percent(kept / predicted if predicted else None))
        lines.append([name, f"{predicted}", shares[0], f"{kept}", shares[1], f"{row['threshold']:.4f}"])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    """Lay out cells: titles at the left, numbers at the right of columns of at least six characters."""
    width = max(len(line[0]) for line in lines)
    widths = [max(6, *map(len, column)) for column in zip(*(line[1:] for line in lines), strict=True)]
    rows = ["".join(f"  {cell:>{size}}" for cell, size in zip(line[1:], widths, strict=True)) for line in lines]
    return "\n".join(f"{line[0]:<{width}}{row}" for line, row in zip(lines, rows, strict=True))


def percent(value: float | None) -> str:
    """Write a share in percent with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
