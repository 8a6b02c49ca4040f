"""Which run a run is held against: the demo's, where what a method adds is told from a longer training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from esl_dist.report.runs import RunFolder, controls_of
from esl_dist.report.scores import Row, points_to, with_controls
from tests.training.small_runs import configuration


def run(name: str, method: str, start: str | None = None, **more: Any) -> RunFolder:
    network = {"architecture": "tiny", "start": None if start is None else f"/e/snapshots/{start}"}
    config = configuration(name=name, method={"name": method}, network=network, **more)
    return RunFolder(Path("/e/snapshots") / name, config, None, {}, None, [])


DEMO = [
    run("source_only", "source_only"),
    run("source_only_long", "source_only", "source_only"),
    run("advent", "advent"),
    run("advent_long", "advent", "advent"),
    run("advent_esl", "advent", "advent", pseudo_labels="labels"),
    run("self_training", "self_training", "advent"),
]


def held_against(runs: list[RunFolder]) -> dict[str, tuple[str, str]]:
    return {
        str(runs[place].config.name): (str(runs[other].config.name), kind)
        for place, (other, kind) in controls_of(runs).items()
    }


def test_gains_of_the_demo_are_told_from_those_of_a_longer_training() -> None:
    assert held_against(DEMO) == {
        "source_only_long": ("source_only", "its start"),
        "advent": ("source_only", "source only"),
        "advent_long": ("advent", "its start"),
        "advent_esl": ("advent_long", "trained as long"),
        "self_training": ("advent_long", "trained as long"),
    }


def test_without_a_run_as_long_the_start_is_the_control() -> None:
    assert held_against([DEMO[2], DEMO[4]]) == {"advent_esl": ("advent", "its start")}


def test_a_run_that_went_on_for_other_steps_is_not_called_as_long() -> None:
    longer = run("advent_long", "advent", "advent", steps=DEMO[3].config.steps * 2)
    kind = held_against([DEMO[2], longer, DEMO[4]])["advent_esl"]
    assert kind == ("advent_long", f"went on for {longer.config.steps} steps")


def test_a_path_leads_to_a_run_also_where_the_experiments_were_moved(tmp_path: Path) -> None:
    moved = tmp_path / "new/snapshots/advent"
    moved.mkdir(parents=True)
    assert points_to(f"{moved}/checkpoints/step-4", moved)
    assert points_to("old/snapshots/advent/checkpoints/step-4", moved)
    assert not points_to("old/snapshots/advent_long", moved)
    other = tmp_path / "other/snapshots/advent"
    other.mkdir(parents=True)
    assert not points_to(str(other), moved), "there is another one of this name"


def row(title: str, number: int, **more: Any) -> Row:
    return replace(Row(title, f"{title}.json", 0.5, {}, {}, None, run=number), **more)


def test_a_network_that_saw_the_target_is_held_against_one_with_statistics_of_the_target() -> None:
    rows = [
        row("source_only", 0, data="toytown", anew=False),
        row("source_only_target_statistics", 0, data="toytown", anew=True),
        row("advent", 2, data="toytown", anew=False),
        row("advent", 2, data="village", anew=False),
    ]
    controls = [one.control for one in with_controls(rows, {2: 0}, {2})]
    assert controls == [None, None, 1, None], "and not on other data"
