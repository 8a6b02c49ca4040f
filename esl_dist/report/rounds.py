"""The rounds of pseudo-labels that a report lays open."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esl_dist.data.labels import ClassSet
from esl_dist.data.shard_index import ShardIndex, read_index
from esl_dist.errors import UserError
from esl_dist.inference.labelling.histograms import HISTOGRAMS, read_histograms
from esl_dist.inference.labelling.job import SUMMARY
from esl_dist.inference.labelling.labels import read_summary


def told_of_round(folder: Path) -> tuple[dict[str, Any], ClassSet]:
    """Return what the page tells of a folder of pseudo-labels, and their classes.

    Raises:
        UserError: it is none.
    """
    index = read_index(folder)
    classes = _classes(folder, index)
    summary = read_summary(folder / SUMMARY, [item.name for item in classes])
    file, histograms, missing = folder / HISTOGRAMS, None, None
    if file.exists():
        histograms = read_histograms(file)
        _refuse_other_classes(file, histograms, list(summary["classes"]))
    else:
        missing = (
            f"{file} is not there: these pseudo-labels were made by an earlier version. Label again into another "
            "folder with the same settings, and compare_with_labels=true where the target has labels"
        )
    made_with = {key: value for key, value in index.made_with.items() if key != "classes"}
    told = {"folder": str(folder), "summary": summary, "histograms": histograms, "missing": missing}
    return {**told, "made_with": made_with}, classes


def _classes(folder: Path, index: ShardIndex) -> ClassSet:
    if len(index.class_sets) != 1 or "score" not in index.made_with:
        raise UserError(f"{folder}: no pseudo-labels; expected a folder that esl-dist pseudo-label has written")
    return next(iter(index.class_sets.values()))


def _refuse_other_classes(file: Path, histograms: Mapping[str, Any], names: list[str]) -> None:
    for name, score in histograms.items():
        if list(score["classes"]) != names:
            raise UserError(f"{file}: scores.{name}: expected the classes {', '.join(names)}; label again")
