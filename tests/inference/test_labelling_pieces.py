"""What an unfinished pseudo-label job leaves is used by the next as far as its settings are the same."""

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json
from esl_dist.inference.labelling import pieces
from esl_dist.inference.labelling.pieces import (
    JOB,
    PIECE_FORMAT,
    PREDICTION,
    UNFINISHED,
    LabelJob,
    encode_prediction,
    open_unfinished,
    piece_name,
    read_entry,
    read_piece,
    require_room,
    write_piece,
    write_tar,
)
from tests.inference.label_jobs import job_of

MADE_WITH = {"checkpoint": "abc", "bound": 0.5, "compare_with_labels": False}
BEGUN_WITH = {**MADE_WITH, "piece_format": PIECE_FORMAT}
PIECE, LABELS = "piece-000000.tar.json", "village-000000.tar.json"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return the folder of a job that finished one piece, and the labels of one shard of another name than ours."""
    for name, content in ((JOB, BEGUN_WITH), (PIECE, {}), (LABELS, {})):
        write_json(tmp_path / UNFINISHED / name, content)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "left", "told"),
    [
        ({}, {PIECE, LABELS}, ""),
        (
            {"compare_with_labels": True},
            {PIECE, LABELS},
            "another compare_with_labels: false → true; its 1 finished pieces stay\n",
        ),
        ({"bound": 0.6}, {PIECE}, "another bound: 0.5 → 0.6; its 1 finished pieces stay\n"),
        ({"checkpoint": "abd"}, set(), 'another checkpoint: "abc" → "abd"; its 1 finished pieces are made anew\n'),
        ({"new": 1}, set(), "another new: null → 1; its 1 finished pieces are made anew\n"),
    ],
)
def test_what_does_not_depend_on_the_changed_settings_stays(
    output: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], left: set[str], told: str
) -> None:
    unfinished = output / UNFINISHED
    open_unfinished(unfinished, MADE_WITH | changes)
    assert {path.name for path in unfinished.iterdir()} == left | {JOB}
    assert read_json(unfinished / JOB) == BEGUN_WITH | changes
    assert capsys.readouterr().out == (f"{output}: begun with {told}" if told else "")


def test_a_folder_whose_job_is_not_known_is_made_anew(output: Path) -> None:
    (output / UNFINISHED / JOB).unlink()
    open_unfinished(output / UNFINISHED, MADE_WITH)
    assert [path.name for path in (output / UNFINISHED).iterdir()] == [JOB]


@pytest.mark.parametrize("content", ["[]", '"abc"', '{"a\\nb": 1}', '{"bound": NaN}', "{", '{"bound": 1, "bound": 2}'])
def test_a_folder_whose_job_is_damaged_is_named_and_left_alone(output: Path, content: str) -> None:
    (output / UNFINISHED / JOB).write_text(content)
    with pytest.raises(UserError, match=r"\.scratch/job\.json"):
        open_unfinished(output / UNFINISHED, MADE_WITH)
    assert len(list((output / UNFINISHED).iterdir())) == 3


PIECE_OF_ONE = range(1)
LABELS_OF_3 = np.array([[0, 1], [2, 2]], np.uint8)
LEVELS = np.array([[0, 1], [2, 65535]], np.uint16)


def write_arrays(folder: Path, labels: np.ndarray, levels: np.ndarray) -> None:
    """Write the tar of a piece of one sample, whatever its arrays are."""
    members = {}
    for kind, array in (("label.npy", labels), ("level.npy", levels)):
        np.save(file := BytesIO(), array)
        members[kind] = file.getvalue()
    write_tar(folder, folder / piece_name(PIECE_OF_ONE), [("a/b", members)])


def read_all(job: LabelJob) -> None:
    """Read all predictions of a piece."""
    for _, read in read_piece(job, PIECE_OF_ONE):
        read()


def test_predictions_come_back(tmp_path: Path) -> None:
    job = job_of(tmp_path, ["a/b"])
    write_piece(job, PIECE_OF_ONE, [encode_prediction(torch.from_numpy(LABELS_OF_3), torch.from_numpy(LEVELS))])
    [(position, read)] = read_piece(job, PIECE_OF_ONE)
    labels, levels = read()
    assert (position, labels.dtype, levels.dtype) == (0, torch.uint8, torch.uint16)
    assert (labels.tolist(), levels.tolist()) == (LABELS_OF_3.tolist(), LEVELS.tolist())


def test_a_crop_of_a_prediction_comes_back(tmp_path: Path) -> None:
    """Of padded pictures a part is kept; its rows do not follow each other in memory."""
    job = job_of(tmp_path, ["a/b"])
    padded_labels, padded_levels = np.full((2, 5), 2, np.uint8), np.arange(10, dtype=np.uint16).reshape(2, 5)
    crops = [torch.from_numpy(array)[:, :2] for array in (padded_labels, padded_levels)]
    write_piece(job, PIECE_OF_ONE, [encode_prediction(*crops)])
    [(_, read)] = read_piece(job, PIECE_OF_ONE)
    labels, levels = read()
    assert (labels.tolist(), levels.tolist()) == ([[2, 2], [2, 2]], [[0, 1], [5, 6]])


@pytest.mark.parametrize(
    ("labels", "levels", "key", "message"),
    [
        (LABELS_OF_3 + 1, LEVELS, "a/b", "tar: damaged"),
        (LABELS_OF_3, LEVELS[:1], "a/b", "tar: damaged"),
        (LABELS_OF_3, np.zeros((2, 2, 3), np.uint16), "a/b", "tar: damaged"),
        (LABELS_OF_3, LEVELS.astype(np.uint8), "a/b", "tar: damaged"),
        (LABELS_OF_3.astype(np.int64), LEVELS, "a/b", "tar: damaged"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint16), "a/b", "tar: damaged"),
        (LABELS_OF_3, LEVELS, "a/c", "tar.json: samples: expected the samples of the target"),
    ],
)
def test_predictions_of_something_else_are_refused(
    tmp_path: Path, labels: np.ndarray, levels: np.ndarray, key: str, message: str
) -> None:
    job = job_of(tmp_path, [key])
    write_arrays(job.unfinished, labels, levels)
    with pytest.raises(UserError, match=rf"piece-000000000\.{message}.*delete .*\.scratch and start again"):
        read_all(job)


class Leaves:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_piece_is_not_unpickled(tmp_path: Path) -> None:
    job, left = job_of(tmp_path, ["a/b"]), tmp_path / "left"
    write_arrays(job.unfinished, np.array([[Leaves(left)]], dtype=object), LEVELS)
    with pytest.raises(UserError, match=r"piece-000000000\.tar: damaged; delete .* and start again"):
        read_all(job)
    assert not left.exists()


def test_bytes_that_were_changed_are_no_predictions(tmp_path: Path) -> None:
    job = job_of(tmp_path, ["a/b"])
    write_arrays(job.unfinished, LABELS_OF_3, LEVELS)
    tar = job.unfinished / piece_name(PIECE_OF_ONE)
    tar.write_bytes(tar.read_bytes().replace(LEVELS.tobytes(), LEVELS[::-1].tobytes()))
    with pytest.raises(UserError, match=r"piece-000000000\.tar: damaged; delete .* and start again"):
        read_all(job)


def test_pieces_of_an_older_version_are_made_anew(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their predictions are PNG files."""
    write_json(output / UNFINISHED / JOB, MADE_WITH)
    open_unfinished(output / UNFINISHED, MADE_WITH)
    told = "begun with another piece_format: null → 2; its 1 finished pieces are made anew\n"
    assert capsys.readouterr().out == f"{output}: {told}"
    assert [path.name for path in (output / UNFINISHED).iterdir()] == [JOB]


def test_the_entry_of_another_tar_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path, LABELS_OF_3, LEVELS)
    (tmp_path / "piece-000000000.tar.json").rename(tmp_path / "piece-1.tar.json")
    message = r"piece-1\.tar\.json: name: expected 'piece-1\.tar', got 'piece-000000000\.tar'"
    with pytest.raises(UserError, match=message):
        read_entry(tmp_path, "piece-1.tar", ["a/b"], list(PREDICTION))
    (tmp_path / "piece-1.tar.json").rename(tmp_path / "piece-000000000.tar.json")
    with pytest.raises(UserError, match="samples: expected the samples of the target"):
        read_entry(tmp_path, "piece-000000000.tar", [], list(PREDICTION))
    with pytest.raises(UserError, match=r"samples\[0\]\.members: expected label\.png, got a mapping of 2"):
        read_entry(tmp_path, "piece-000000000.tar", ["a/b"], ["label.png"])


class Disk(NamedTuple):
    total: int
    used: int
    free: int


NEEDED = 1000 * 4 * 3
"""Bytes for a thousand pictures of 2×2."""


@pytest.mark.parametrize("disk", [Disk(10**9, 0, NEEDED), Disk(0, 0, 0)], ids=["just enough", "not known"])
def test_a_job_begins_where_its_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk) -> None:
    job = job_of(tmp_path, ["a/b"])
    monkeypatch.setattr(pieces.shutil, "disk_usage", lambda place: disk)
    require_room(job, 1000)


def test_a_job_is_refused_at_its_start_where_its_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, asked = job_of(tmp_path, ["a/b"]), []
    monkeypatch.setattr(pieces.shutil, "disk_usage", lambda place: asked.append(place) or Disk(10**9, 0, NEEDED - 1))
    with pytest.raises(UserError, match=r"labels: no room for .* 1000 pictures.* GB are needed and .* make room, or"):
        require_room(job, 1000)
    assert asked == [job.unfinished], "where the pieces lie"
