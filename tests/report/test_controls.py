"""Which run a run is held against: the demo's, where what a method adds is told from a longer training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from esl_dist.report.runs import RunFolder, controls_of, is_plain, starts_of, unclear_starts
from esl_dist.report.scores import Row, points_to, read_row, rows_of_run, with_controls
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


def moved_seeds(tmp_path: Path) -> list[RunFolder]:
    """Return two seeds of a run, and one of the second seed that starts from it, moved since."""
    runs = []
    for seed, name in ((1, "advent"), (2, "advent"), (2, "advent_esl")):
        folder = tmp_path / f"seed{seed}/snapshots" / name
        folder.mkdir(parents=True)
        config = run(name, "advent", None if name == "advent" else "../../gone/snapshots/advent", seed=seed).config
        runs.append(RunFolder(folder, config, None, {}, None, []))
    return runs


def test_of_moved_runs_of_one_name_the_one_in_the_same_experiments_is_the_start(tmp_path: Path) -> None:
    runs = moved_seeds(tmp_path)
    assert starts_of(runs) == {2: 1}
    assert unclear_starts(runs) == []


def test_where_several_moved_runs_may_be_the_start_none_is_and_it_is_said(tmp_path: Path) -> None:
    runs = moved_seeds(tmp_path)
    elsewhere = tmp_path / "seed3/snapshots/advent_esl"
    elsewhere.mkdir(parents=True)
    runs[2] = replace(runs[2], folder=elsewhere)
    assert starts_of(runs) == controls_of(runs) == {}
    [note] = unclear_starts(runs)
    assert note.startswith(f"{elsewhere}: starts from")
    assert all(str(one.folder) in note for one in runs[:2])


def row(title: str, number: int, **more: Any) -> Row:
    return replace(Row(title, f"{title}.json", 0.5, {}, {}, None, run=number), **more)


def test_a_network_that_saw_the_target_is_held_against_one_with_statistics_of_the_target() -> None:
    rows = [
        row("source_only", 0, data="toytown", anew=False),
        row("source_only_target_statistics", 0, data="toytown", anew=True),
        row("advent", 2, data="toytown", anew=False),
        row("advent", 2, data="village", anew=False),
    ]
    held = with_controls(rows, {2: 0}, {2})
    assert [one.control for one in held] == [None, None, 1, None], "and not on other data"
    assert held[2].unlike == []


def test_where_only_statistics_of_the_source_are_there_it_is_said() -> None:
    rows = [row("source_only", 0, data="toytown", anew=False), row("advent", 1, data="toytown", anew=False)]
    held = with_controls(rows, {1: 0}, {1})
    assert (held[1].control, held[1].unlike) == (0, ["batch-norm statistics of another domain"])


def test_a_run_with_pseudo_labels_saw_the_target_whatever_its_method() -> None:
    assert is_plain(DEMO[0])
    assert not is_plain(run("labels", "source_only", pseudo_labels="labels"))


def score_file(file: Path, made_with: dict[str, Any] | None, **more: Any) -> Row:
    """Write scores of one evaluation, or with `made_with` of the snapshots of a run, and read them."""
    scores = {"miou": 0.5, "iou": {"road": 0.5}}
    content = scores if made_with is None else {"made_with": made_with, "best": {"step": 4, **scores}}
    file.write_text(json.dumps(content | more))
    return read_row(file)


def test_pictures_are_told_apart_by_fingerprint_in_both_kinds_of_file(tmp_path: Path) -> None:
    single = score_file(tmp_path / "one.json", None, data="toytown val", data_fingerprint="a")
    same, other = (
        score_file(tmp_path / f"{name}.json", {"data": name, "data_name": "toytown val", "statistics_from": None})
        for name in "ab"
    )
    assert (single.data, single.fingerprint) == (same.data, same.fingerprint) == ("toytown val", "a")
    rows = [replace(one, run=number) for number, one in enumerate((single, same, other))]
    assert [one.control for one in with_controls(rows, {1: 0, 2: 0}, set())] == [None, 0, None]


def test_unknown_pictures_are_held_against_unknown_ones_of_the_same_name_alone() -> None:
    unknown, known = row("a", 0), row("val", 0, data="toytown", fingerprint="a")
    rows = [unknown, known, row("val", 1), row("a", 1)]
    assert [one.control for one in with_controls(rows, {1: 0}, set())] == [None, None, None, 0]


def test_a_last_step_is_held_against_a_last_step_and_a_chosen_one_against_a_chosen_one(tmp_path: Path) -> None:
    best = replace(score_file(tmp_path / "best.json", {"data": "a", "statistics_from": None}), run=0)
    assert best.title == "best, best step, chosen on these pictures"
    last = row("last", 0, fingerprint="a", anew=False)
    own = [replace(one, run=1) for one in (last, best)]
    held = with_controls([best, last, *own], {1: 0}, set())
    assert [(one.control, one.unlike) for one in held[2:]] == [(1, []), (0, [])]
    [_, alone] = with_controls([best, own[0]], {1: 0}, set())
    assert (alone.control, alone.unlike) == (0, ["only one is the best step, chosen on these pictures"])


def test_of_a_controls_steps_the_rows_own_is_taken_or_else_the_last_and_that_is_said() -> None:
    steps = [row(f"step_{step}", 0, data="toytown", step=step) for step in (20, 60, 40)]
    for step, control, unlike in ((40, 2, []), (60, 1, []), (50, 1, ["scored at another step"])):
        held = with_controls([*steps, row("advent_esl", 1, data="toytown", step=step)], {1: 0}, set())[-1]
        assert (held.control, held.unlike) == (control, unlike)


def test_scores_of_an_ensemble_are_no_runs_wherever_they_lie(tmp_path: Path) -> None:
    own = tmp_path / "snapshots/advent"
    (own / "scores").mkdir(parents=True)
    score_file(own / "scores/own.json", None, checkpoint=str(own))
    score_file(own / "scores/both.json", None, checkpoints=[str(own), "other"], weights=[1.0, 1.0])
    score_file(own / "scores/unsaid.json", None)
    rows, problems = rows_of_run(own, 0)
    assert ([one.title for one in rows], problems) == (["own", "unsaid"], [])
