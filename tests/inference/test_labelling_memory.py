"""Of a pseudo-label job few pictures are in memory, nothing is begun for no picture, and an error leaves no thread."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from esl_dist.adaptation.entropy import empty_histograms
from esl_dist.adaptation.pseudo_labels import Threshold
from esl_dist.errors import UserError
from esl_dist.inference.labelling import labels, levels
from esl_dist.inference.labelling.histograms import bins_of
from esl_dist.inference.labelling.labels import Rule, write_labels
from esl_dist.inference.labelling.levels import level_histograms
from esl_dist.inference.labelling.pieces import (
    LabelJob,
    encode_prediction,
    piece_name,
    pieces_by_shard,
    write_piece,
)
from esl_dist.prediction import background
from tests.inference.label_jobs import job_of

THREADS, PICTURES = 2, 40


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "usable_processors", lambda: THREADS)


@pytest.fixture
def job(tmp_path: Path) -> LabelJob:
    return job_of(tmp_path, [f"{number:03d}" for number in range(PICTURES)], in_a_shard=20)


def predict_all(job: LabelJob) -> None:
    """Write every piece, as an earlier start would have."""
    for pieces in pieces_by_shard(job.target.images.index):
        for piece in pieces:
            one = encode_prediction(torch.ones(2, 2, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.uint16))
            write_piece(job, piece, [one] * len(piece))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return which pictures were read, where reading takes no time and nothing is predicted of them."""
    positions: list[int] = []

    def read(samples: Any, own: Iterable[list[int]], *_: Any) -> Iterator[int]:
        for [position] in own:
            positions.append(position)
            yield position

    monkeypatch.setattr(levels, "read_batches", read)
    monkeypatch.setattr(levels, "_prediction", lambda job, position, count: lambda: {"label.npy": bytes(position)})
    return positions


def test_few_pictures_wait_for_a_piece_to_be_written(
    job: LabelJob, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(job: LabelJob, piece: range, predictions: Iterable[dict[str, bytes]]) -> None:
        for position, prediction in zip(piece, predictions, strict=True):
            assert len(prediction["label.npy"]) == position
            assert len(taken) - len(written) <= THREADS + 1
            written.append(position)

    monkeypatch.setattr(levels, "write_piece", write)
    level_histograms(job)
    assert written == taken == list(range(PICTURES))


def test_where_all_pieces_are_there_they_are_counted_and_no_picture_is_read(
    job: LabelJob, taken: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "read_batches", None)
    predict_all(job)
    histograms = level_histograms(job)
    assert histograms[0, 1, 1] == histograms.sum() == PICTURES * 4
    assert capsys.readouterr().err == ""


def test_room_is_wanted_for_what_is_missing(job: LabelJob, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[int] = []
    monkeypatch.setattr(levels, "_predict", lambda *_: None)
    monkeypatch.setattr(levels, "require_room", lambda job, pictures: wanted.append(pictures))
    level_histograms(job)
    predict_all(job)
    [[piece, *_], *_] = pieces_by_shard(job.target.images.index)
    (job.unfinished / piece_name(piece)).unlink()
    level_histograms(job)
    assert wanted == [PICTURES, len(piece)]


def fails(*given: Any) -> NoReturn:
    """Take one sample of the last argument, as a disk that is full then."""
    next(iter(given[-1]))
    raise UserError("the disk is full")


def test_an_error_where_a_piece_is_written_leaves_no_thread(
    job: LabelJob, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "write_piece", fails)
    before = threading.active_count()
    with pytest.raises(UserError, match="the disk is full") as told:
        level_histograms(job)
    assert threading.active_count() == before, told


def test_an_error_where_pseudo_labels_are_written_leaves_no_thread(
    job: LabelJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_all(job)
    bins = bins_of(empty_histograms(3, torch.device("cpu")), job.trusts[0], 0.5)
    monkeypatch.setattr(labels, "write_tar", fails)
    before = threading.active_count()
    with pytest.raises(UserError, match="the disk is full") as told:
        write_labels(job, Rule([Threshold(0.5, 32768)] * 3, [bins]))
    assert threading.active_count() == before, told
