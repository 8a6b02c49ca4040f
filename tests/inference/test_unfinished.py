"""What an unfinished pseudo-label job leaves is used by the next as far as its settings are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esl_dist.data.images import encode_png
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json
from esl_dist.inference.unfinished import (
    JOB,
    PREDICTION,
    SCRATCH,
    open_scratch,
    read_entry,
    read_predictions,
    write_tar,
)

MADE_WITH = {"checkpoint": "abc", "bound": 0.5, "compare_with_labels": False}
PIECE, LABELS = "piece-000000.tar.json", "village-000000.tar.json"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return the folder of a job that finished one piece, and the labels of one shard of another name than ours."""
    for name, content in ((JOB, MADE_WITH), (PIECE, {}), (LABELS, {})):
        write_json(tmp_path / SCRATCH / name, content)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "left", "told"),
    [
        ({}, {PIECE, LABELS}, ""),
        ({"compare_with_labels": True}, {PIECE, LABELS}, "another compare_with_labels; its 1 finished pieces stay\n"),
        ({"bound": 0.6}, {PIECE}, "another bound; its 1 finished pieces stay\n"),
        ({"checkpoint": "abd"}, set(), "another checkpoint; its 1 finished pieces are made anew\n"),
        ({"new": 1}, set(), "another new; its 1 finished pieces are made anew\n"),
    ],
)
def test_what_does_not_depend_on_the_changed_settings_stays(
    output: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], left: set[str], told: str
) -> None:
    scratch = open_scratch(output, MADE_WITH | changes)
    assert {path.name for path in scratch.iterdir()} == left | {JOB}
    assert read_json(scratch / JOB) == MADE_WITH | changes
    assert capsys.readouterr().out == (f"{output}: begun with {told}" if told else "")


def test_a_folder_whose_job_is_not_known_is_made_anew(output: Path) -> None:
    (output / SCRATCH / JOB).unlink()
    scratch = open_scratch(output, MADE_WITH)
    assert [path.name for path in scratch.iterdir()] == [JOB]


@pytest.mark.parametrize("content", ["[]", '"abc"', '{"a\\nb": 1}', '{"bound": NaN}', "{", '{"bound": 1, "bound": 2}'])
def test_a_folder_whose_job_is_damaged_is_named_and_left_alone(output: Path, content: str) -> None:
    (output / SCRATCH / JOB).write_text(content)
    with pytest.raises(UserError, match=r"\.scratch/job\.json"):
        open_scratch(output, MADE_WITH)
    assert len(list((output / SCRATCH).iterdir())) == 3


def predictions(folder: Path, labels: np.ndarray, levels: np.ndarray) -> None:
    """Write a scratch tar of one sample."""
    members = {"label.png": encode_png(labels), "level.png": encode_png(levels)}
    write_tar(folder, folder / "piece-0.tar", [("a/b", members)])


LABELS_OF_3 = np.array([[0, 1], [2, 2]], np.uint8)
LEVELS = np.array([[0, 1], [2, 65535]], np.uint16)


def test_predictions_come_back(tmp_path: Path) -> None:
    predictions(tmp_path, LABELS_OF_3, LEVELS)
    [(key, labels, levels)] = read_predictions(tmp_path, "piece-0.tar", ["a/b"], 3)
    assert (key, labels.tolist(), levels.tolist()) == ("a/b", LABELS_OF_3.tolist(), LEVELS.tolist())


@pytest.mark.parametrize(
    ("labels", "levels", "keys", "message"),
    [
        (LABELS_OF_3 + 1, LEVELS, ["a/b"], "piece-0.tar: damaged"),
        (LABELS_OF_3, LEVELS[:1], ["a/b"], "piece-0.tar: damaged"),
        (LABELS_OF_3, np.zeros((2, 2, 3), np.uint8), ["a/b"], "piece-0.tar: damaged"),
        (LABELS_OF_3, LEVELS, ["a/c"], "piece-0.tar.json: samples: expected the samples of the target"),
        (LABELS_OF_3, LEVELS, [], "piece-0.tar.json: samples: expected the samples of the target"),
    ],
)
def test_predictions_of_something_else_are_refused(
    tmp_path: Path, labels: np.ndarray, levels: np.ndarray, keys: list[str], message: str
) -> None:
    predictions(tmp_path, labels, levels)
    with pytest.raises(UserError, match=f"{message}.*delete .* and start again"):
        list(read_predictions(tmp_path, "piece-0.tar", keys, 3))


def test_the_entry_of_another_tar_is_refused(tmp_path: Path) -> None:
    predictions(tmp_path, LABELS_OF_3, LEVELS)
    (tmp_path / "piece-0.tar.json").rename(tmp_path / "piece-1.tar.json")
    with pytest.raises(UserError, match=r"piece-1\.tar\.json: name: expected 'piece-1\.tar', got 'piece-0\.tar'"):
        read_entry(tmp_path, "piece-1.tar", ["a/b"], PREDICTION)
    (tmp_path / "piece-1.tar.json").rename(tmp_path / "piece-0.tar.json")
    with pytest.raises(UserError, match=r"samples\[0\]\.members: expected label\.png, got a mapping of 2"):
        read_entry(tmp_path, "piece-0.tar", ["a/b"], ["label.png"])
