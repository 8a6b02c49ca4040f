"""What an unfinished pseudo-label job leaves is used by the next as far as its settings are the same."""

from pathlib import Path
from typing import Any

import pytest

from esl_dist.engine.scratch import JOB, SCRATCH, open_scratch
from esl_dist.errors import UserError
from esl_dist.files import read_json, write_json

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
