"""What the histograms of a job say of another bound is what the program would keep with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esl_dist.adaptation.entropy import HIGHEST_LEVEL, count_levels, empty_histograms
from esl_dist.adaptation.pseudo_labels import TRUST, kept_pixels, thresholds
from esl_dist.errors import UserError
from esl_dist.inference.labelling.histograms import (
    HISTOGRAMS,
    STEPS,
    bins_of,
    count_right,
    read_histograms,
    write_histograms,
)
from esl_dist.inference.labelling.pieces import LabelJob
from tests.inference.label_jobs import job_of

CLASSES, PIXELS = 3, 4000


def drawn(seed: int, power: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predicted labels, levels that lie near 0 as often as `power` says, and true labels, some of no class."""
    random = np.random.RandomState(seed)
    shape = (PIXELS // 50, 50)
    # The last class is never predicted.
    labels = random.randint(0, CLASSES - 1, shape).astype(np.uint8)
    levels = (random.random_sample(shape) ** power * HIGHEST_LEVEL).astype(np.uint16)
    truth = np.where(random.random_sample(shape) < 0.2, 255, random.randint(0, CLASSES, shape)).astype(np.uint8)
    return labels, levels, truth


def counted(labels: np.ndarray, levels: np.ndarray) -> torch.Tensor:
    histograms = empty_histograms(CLASSES, torch.device("cpu"))
    count_levels(histograms, torch.from_numpy(labels), torch.from_numpy(levels))
    return histograms


@given(
    st.integers(0, 1000),
    st.sampled_from([0.2, 1.0, 8.0]),
    st.sampled_from(sorted(TRUST)),
    st.floats(0, 1),
    st.integers(0, STEPS),
)
def test_whole_bins_are_what_any_threshold_keeps_and_what_is_right_of_it(
    seed: int, power: float, score: str, own_bound: float, step: int
) -> None:
    labels, levels, truth = drawn(seed, power)
    histograms, trust = counted(labels, levels), TRUST[score]
    bins = bins_of(histograms, trust, own_bound)
    right = count_right(bins, labels, levels, truth)
    for bound in (own_bound, step / STEPS):
        limits = thresholds(histograms, trust, bound)
        for place, (limit, expected) in enumerate(zip(limits, kept_pixels(histograms, limits, trust), strict=True)):
            edges = bins.edges[place]
            edge = limit.level + 1 if trust.low_is_trusted else limit.level
            assert edge in edges, "a threshold cuts no bin"
            kept = slice(0, edges.index(edge)) if trust.low_is_trusted else slice(edges.index(edge), len(edges) - 1)
            pixels = np.add.reduceat(histograms[place].numpy(), edges[:-1])[kept]
            is_kept = (labels == place) & ((levels <= limit.level) if trust.low_is_trusted else levels >= limit.level)
            assert pixels.sum() == expected == is_kept.sum()
            assert right[0, place, kept].sum() == (is_kept & (truth < CLASSES)).sum()
            assert right[1, place, kept].sum() == (is_kept & (truth == labels)).sum()


@pytest.fixture
def written(tmp_path: Path) -> tuple[LabelJob, Path]:
    """Return a job whose histograms are written, without labels to compare with, and their file."""
    job = job_of(tmp_path, ["a"])
    labels, levels, _ = drawn(1, 1.0)
    histograms = counted(labels, levels)
    write_histograms(job, [bins_of(histograms, job.trusts[0], 0.1)], histograms[None], None)
    return job, job.output / HISTOGRAMS


def test_histograms_are_read_as_they_were_written(written: tuple[LabelJob, Path]) -> None:
    job, file = written
    scores = read_histograms(file)
    assert scores == json.loads(file.read_text())["scores"]
    assert list(scores) == list(job.bounds) == ["entropy"]
    assert list(scores["entropy"]["classes"]) == job.made_with["classes"]
    assert sum(sum(one["pixels"]) for one in scores["entropy"]["classes"].values()) == PIXELS
    last = scores["entropy"]["classes"]["sky"]
    assert (last["median"], sum(last["pixels"]), last["labelled"], last["right"]) == (None, 0, None, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("edges", [0, 5, 5, 65536]), ("edges", [0, 65536]), ("pixels", [1]), ("median", "x"), ("pixels", None)],
)
def test_damaged_histograms_are_refused_with_their_place(
    written: tuple[LabelJob, Path], key: str, value: object
) -> None:
    _, file = written
    content = json.loads(file.read_text())
    content["scores"]["entropy"]["classes"]["road"][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"histograms\.json: scores\.entropy\.classes\.road"):
        read_histograms(file)
