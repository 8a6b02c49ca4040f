"""Histograms of a job's scores, beside its summary, so that what another threshold would keep can be read off them.

The levels of 16 bits would take 10 MB; here they are joined to bins whose edges no threshold cuts that anybody asks
for: those of bounds in steps of 1 / `STEPS`, of the job's own bound, and of the class's median. So whatever
`adaptation.pseudo_labels.thresholds` finds for such a bound, counts of whole bins are exact.

    {"format": "esl-dist label histograms", "format_version": 1, "scores": {"entropy": {"bound": 0.1, "low_is_trusted":
     true, "classes": {"road": {"median": 310, "edges": [0, 1, …, 65536], "pixels": […], "labelled": […], "right":
     […]}, …}}}}

`edges` are levels: a bin has those from its edge up to the next one, without it. Of the pixels predicted as a class,
`labelled` are those with a label and `right` those that it names, too; null where no labels were read. The first score
is the one that decided.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esl_dist.adaptation.entropy import HIGHEST_LEVEL, median_levels
from esl_dist.adaptation.pseudo_labels import TRUST, Trust, level_of_bound
from esl_dist.checked import Share, read, read_content
from esl_dist.files import write_json
from esl_dist.inference.labelling.pieces import LabelJob

HISTOGRAMS = "histograms.json"
FORMAT, FORMAT_VERSION = "esl-dist label histograms", 1
STEPS = 200
"""Bounds k / STEPS, for whole k, cut no bin."""

Counts = NDArray[np.int64]
Levels = NDArray[np.uint16]


@dataclass(frozen=True)
class ClassHistogram:
    """Pixels predicted as a class, by the level of their score; see the module."""

    median: int | None
    edges: list[int]
    pixels: list[int]
    labelled: list[int] | None
    right: list[int] | None


@dataclass(frozen=True)
class ScoreHistograms:
    """A score's histograms by class name, and the bound of the thresholds that the job was asked for."""

    bound: Share
    low_is_trusted: bool
    classes: dict[str, ClassHistogram]


@dataclass(frozen=True)
class LabelHistograms:
    """The histograms of a job by score; the first one decided."""

    scores: dict[str, ScoreHistograms]


@dataclass(frozen=True)
class Bins:
    """The bins of one score.

    Attributes:
        edges: of each class, ascending, from 0 to 65536.
        medians: the class's median level; None where it is never predicted.
        by_level: bin of a level, (classes, 65536).
    """

    edges: list[list[int]]
    medians: list[int | None]
    by_level: NDArray[np.int64]

    @property
    def most(self) -> int:
        """The number of bins of the class that has most."""
        return max(map(len, self.edges)) - 1


def bins_of(histograms: Tensor, trust: Trust, bound: float) -> Bins:
    """Choose a score's bins.

    Args:
        histograms: int64 (classes, 65536), over the whole data set.
        trust: which score they count.
        bound: the job's own.
    """
    bounds = {_edge(level_of_bound(one, trust), trust) for one in [bound, *(k / STEPS for k in range(STEPS + 1))]}
    medians = median_levels(histograms)
    ends = {0, HIGHEST_LEVEL + 1}
    edges = [sorted(bounds | ends | (set() if median is None else {_edge(median, trust)})) for median in medians]
    every = np.arange(HIGHEST_LEVEL + 1)
    return Bins(edges, medians, np.stack([np.searchsorted(own, every, side="right") - 1 for own in edges]))


def _edge(level: int, trust: Trust) -> int:
    """Return the edge between the levels that are trusted up to (from) this one, and the others."""
    return level + 1 if trust.low_is_trusted else level


def count_right(bins: Bins, labels: NDArray[np.uint8], levels: Levels, truth: NDArray[np.uint8]) -> Counts:
    """Count the pixels of a picture that have a label, and those that are right: int64 (2, classes, bins).

    Args:
        bins: of the score.
        labels: predicted train ids (height, width).
        levels: of their scores, same shape.
        truth: train ids of the label, same shape; what is no class is no label.
    """
    shape = (len(bins.edges), bins.most)
    places = labels.astype(np.int64) * shape[1] + bins.by_level[labels, levels]
    taken = (truth < shape[0], truth == labels)
    return np.stack([np.bincount(places[one], minlength=shape[0] * shape[1]).reshape(shape) for one in taken])


def write_histograms(job: LabelJob, bins: list[Bins], histograms: Tensor, right: Tensor | None) -> None:
    """Write the histograms of all scores.

    Args:
        job: whose they are.
        bins: of each score.
        histograms: int64 (scores, classes, 65536).
        right: sums of `count_right`, int64 (scores, 2, classes, bins); None: no labels were read.
    """
    names = job.made_with["classes"]
    scores = {}
    for number, (name, bound) in enumerate(job.bounds.items()):
        counted = None if right is None else right[number].numpy()
        classes = {
            class_name: _of_class(bins[number], place, histograms[number, place].numpy(), counted)
            for place, class_name in enumerate(names)
        }
        scores[name] = ScoreHistograms(bound, TRUST[name].low_is_trusted, classes)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(LabelHistograms(scores))}
    write_json(job.output / HISTOGRAMS, content, indent=None)


def _of_class(bins: Bins, place: int, levels: Counts, counted: Counts | None) -> ClassHistogram:
    edges, number = bins.edges[place], len(bins.edges[place]) - 1
    labelled, right = (None, None) if counted is None else counted[:, place, :number].tolist()
    return ClassHistogram(bins.medians[place], edges, np.add.reduceat(levels, edges[:-1]).tolist(), labelled, right)


def read_histograms(file: Path) -> Mapping[str, Any]:
    """Read histograms as `write_histograms` writes them, by score.

    Raises:
        UserError: they are missing, or none.
    """
    content = read_content(file, f"delete {file.parent} and label again")
    content.version_of(FORMAT, [FORMAT_VERSION])
    read(content, LabelHistograms)
    for _, score in content.at("scores").items():
        for _, one in score.at("classes").items():
            edges = one.at("edges").entries()
            if [edge.value for edge in edges] != sorted({edge.value for edge in edges}):
                one.at("edges").refuse("levels in ascending order")
            for key in ("pixels", "labelled", "right"):
                if one.at(key).value is not None:
                    one.at(key).whole_numbers(len(edges) - 1)
    scores: Mapping[str, Any] = content.value["scores"]
    return scores
