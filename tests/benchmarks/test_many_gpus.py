"""The rule by which a training is divided among GPUs, and the table that compares such trainings."""

import math
from pathlib import Path

import pytest

from benchmarks import many_gpus
from esl_dist import config as settings
from esl_dist.files import write_json
from esl_dist.training.contradictions import check_training

FOLDER = Path("f")


def published() -> settings.Train:
    return settings.Train(checkpoints=settings.Checkpoints(keep_every=4000))


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_a_divided_training_sees_as_many_pictures_between_the_same_events(gpus: int) -> None:
    before, after = published(), many_gpus.divided(published(), gpus)
    for part in (
        lambda one: one.steps,
        lambda one: one.pictures_every,
        lambda one: one.checkpoints.every,
        lambda one: one.checkpoints.keep_every,
        lambda one: one.optimizer.schedule_steps,
    ):
        assert after.batch_size * part(after) == before.batch_size * part(before)
    assert after.optimizer.learning_rate == before.optimizer.learning_rate


def test_what_never_happens_still_never_does_and_a_step_stays_one() -> None:
    before = settings.Train(pictures_every=0, checkpoints=settings.Checkpoints(every=3))
    after = many_gpus.divided(before, 8)
    assert (after.pictures_every, after.checkpoints.every, after.checkpoints.keep_every) == (0, 1, 0)


@pytest.mark.parametrize(("rule", "factor"), [(many_gpus.linear, 8), (math.sqrt, 8**0.5)])
def test_rates_grow_by_the_rule_and_warm_up_for_a_twentieth_of_the_steps(rule: many_gpus.Rule, factor: float) -> None:
    after = many_gpus.by_rule(rule, "picture")(published())
    options = after.optimizer
    assert options.learning_rate == pytest.approx(factor * 2.5e-4)
    assert options.discriminator_learning_rate == pytest.approx(8**0.5 * 1e-4)
    assert (after.steps, options.warm_up_steps) == (15_000, 750)
    assert after.network.normalise_over == "picture"


@pytest.mark.parametrize("name", sorted(many_gpus.ROWS))
def test_every_row_is_a_training_that_can_be_and_has_a_run_of_its_own(name: str) -> None:
    config = many_gpus.training(FOLDER, FOLDER, name, 2)
    check_training(config)
    assert (config.name, config.seed) == (f"{name}_seed_2", 2)


def test_all_rows_but_one_see_as_many_pictures() -> None:
    configs = {name: many_gpus.training(FOLDER, FOLDER, name, 0) for name in many_gpus.ROWS}
    pictures = {name: config.batch_size * config.steps for name, config in configs.items()}
    assert pictures == {name: 8 * 2800 if name == "more_work" else 2800 for name in configs}


def test_scores_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    write_json(tmp_path / "scores/published_seed_1.json", {"miou": 0.25, "iou": {"road": 0.25}})
    assert many_gpus.score(tmp_path, Path("/nowhere"), "published", 1) == 25


def test_the_table_has_scores_in_the_column_of_their_seed_and_their_spread() -> None:
    rows = many_gpus.table({"published": {0: 50.0, 1: 53.0, 2: 56.0}, "more_work": {2: 7.0}}).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1:] for row in cells] == [
        ["1 × 2800", "0.0075, 0.0001", "0", "batch", "50.0", "53.0", "56.0", "53.0", "3.0"],
        ["8 × 2800", "0.0075, 0.0001", "0", "batch", "", "", "7.0", "", ""],
    ]
