"""What a run's validations found is gone on with, and the best step is one whose checkpoint is there."""

import json
import shutil
from pathlib import Path

import pytest

from esl_dist.errors import UserError
from esl_dist.reporting.scores import ScoreEntries
from esl_dist.runs.checkpoints import checkpoint_folder
from esl_dist.runs.validations import VALIDATIONS, Figures, ValidationRecord

MADE_WITH = {"data": "a" * 64, "size": [64, 32]}


def figures(miou: float | None) -> Figures:
    return Figures(0.5, 0.75, 0.9, ScoreEntries(miou, {"road": miou, "sky": None}))


def run_of(run: Path, mious: dict[int, float | None]) -> ValidationRecord:
    """Validate steps, and leave a checkpoint's folder for each that is the best so far."""
    validations = ValidationRecord(run, MADE_WITH, 0)
    for step, miou in mious.items():
        validations.add(step, figures(miou))
        if validations.best == step:
            checkpoint_folder(run, step).mkdir(parents=True)
    return validations


def test_the_best_step_is_the_first_of_the_highest_miou(tmp_path: Path) -> None:
    assert run_of(tmp_path, {1: None, 2: 0.0, 3: 0.4, 4: 0.3, 5: 0.4}).best == 3
    assert json.loads((tmp_path / VALIDATIONS).read_text())["best"] == 3


def test_without_labels_no_step_is_the_best(tmp_path: Path) -> None:
    validations = ValidationRecord(tmp_path, MADE_WITH, 0)
    assert not validations.is_better(Figures(0.1, 1.0))
    validations.add(1, Figures(0.1, 1.0))
    assert validations.best is None
    assert 1 in validations


def test_a_run_goes_on_with_the_figures_of_the_steps_it_has_done(tmp_path: Path) -> None:
    run_of(tmp_path, {2: 0.2, 4: 0.4, 6: 0.6})
    gone_on = ValidationRecord(tmp_path, MADE_WITH, 5)
    assert [step in gone_on for step in (2, 4, 6)] == [True, True, False]
    assert gone_on.best == 4
    assert gone_on[4] == figures(0.4)
    gone_on.add(6, figures(0.6))
    assert ValidationRecord(tmp_path, MADE_WITH, 6).best == 6


def test_the_best_step_is_one_whose_checkpoint_is_there(tmp_path: Path) -> None:
    run_of(tmp_path, {2: 0.2, 4: 0.4, 6: 0.1})
    shutil.rmtree(checkpoint_folder(tmp_path, 4))
    assert ValidationRecord(tmp_path, MADE_WITH, 6).best == 2


def test_figures_of_other_shards_are_begun_anew_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path, {2: 0.2})
    other = ValidationRecord(tmp_path, {**MADE_WITH, "size": None}, 2)
    assert other.best is None
    assert 2 not in other
    warning = capsys.readouterr().err
    assert "its figures are of other shards, or of another size of pictures" in warning
    assert f"{checkpoint_folder(tmp_path, 2)} stays no longer as the best: copy it" in warning


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    run_of(tmp_path, {2: 0.2})
    file = tmp_path / VALIDATIONS
    file.write_text(file.read_text().replace("0.75", "1.75"))
    with pytest.raises(UserError, match=r"validation.json: steps\.2\.kept: expected .*; delete it"):
        ValidationRecord(tmp_path, MADE_WITH, 2)


def test_a_file_that_cannot_be_written_costs_a_warning_and_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validations = ValidationRecord(tmp_path / "gone", MADE_WITH, 0)
    (tmp_path / "gone").write_text("")
    validations.add(2, figures(0.2))
    assert validations.best == 2
    assert "cannot be written" in capsys.readouterr().err
