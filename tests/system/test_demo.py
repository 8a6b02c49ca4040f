"""The demo as a whole, with few scenes and steps: the summary that is promised, and a second run that does nothing."""

import json
import re
from pathlib import Path

import pytest
import yaml

from esl_dist.errors import UserError
from esl_dist.programs.demo import refuse_other_demo
from tests.grids import grid
from tests.programs import PROJECT, run
from tests.report.pages import content_of

SMALL_DEMO = """
import os, sys, traceback
from esl_dist.command_line import run_program
from esl_dist.__main__ import main
from esl_dist.config import Demo
from esl_dist.data import toytown
from esl_dist.programs import demo

plain = toytown.write_toytown
toytown.write_toytown = lambda root, **options: plain(root, **{**options, "width": 64, "height": 32})
demo.SCENES.update(source_train=4, target_train=4, target_val=2)

def fork(words, env):
    sys.stdout.flush()
    process = os.fork()
    if process > 0:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["esl-dist", *words[words.index("esl_dist") + 1 :]]
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

# Packing processes import this file again.
if __name__ == "__main__":
    if sys.argv.pop(1) == "forked":
        demo.run_to_its_end = fork
    run_program(Demo, demo.main)
"""


LONG = {
    "source_only_long": ("source_only", "source_only"),
    "advent_long": ("advent", "advent"),
    "advent_esl": ("advent", "advent"),
    "self_training": ("advent", "self_training"),
}
"""Runs that start from another's network: from which, and by which method they are trained."""


def small_recipes(folder: Path) -> Path:
    """Copy the demo's recipes with a few steps in place of theirs."""
    folder.mkdir()
    for recipe in (PROJECT / "configs/demo").glob("*.yaml"):
        (folder / recipe.name).write_text(re.sub(r"(?m)^steps: \d+$", "steps: 2", recipe.read_text()))
    return folder


@pytest.mark.parametrize("programs", grid(["forked", "started"], stay=["forked"]))
def test_the_demo_leaves_the_promised_summary_and_a_second_run_only_prints_it(tmp_path: Path, programs: str) -> None:
    program = tmp_path / "small_demo.py"
    program.write_text(SMALL_DEMO)
    words = [
        programs,
        f"output={tmp_path}/demo",
        f"recipes={small_recipes(tmp_path / 'recipes')}",
        "seed=3",
    ]
    first = run(str(program), *words, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    rows = ["source_only", "source_only_target_statistics", "source_only_long_target_statistics", "advent"]
    rows += ["advent_long", "advent_esl", "self_training"]
    assert list(summary) == [*rows, "pseudo_labels"]
    for row in rows:
        assert 0 <= summary[row]["miou"] <= 1
        assert "traffic sign" in summary[row]["iou"]
    assert 0 < summary["pseudo_labels"]["kept"] <= 1
    assert 0 <= summary["pseudo_labels"]["accuracy"] <= 1
    assert f"{100 * summary['advent_esl']['miou']:.1f}" in first.stdout, "the table shows the summary's figures"

    for name, (start, method) in LONG.items():
        config = yaml.safe_load((tmp_path / f"demo/snapshots/{name}/config.yaml").read_text())
        assert config["network"]["start"] == f"{tmp_path}/demo/snapshots/{start}"
        assert (config["steps"], config["optimizer"]["schedule_steps"]) == (2, 240)
        assert config["method"]["name"] == method
        assert (config["pseudo_labels"] is not None) == (name == "advent_esl")

    page = tmp_path / "demo/report.html"
    assert f"{page} shows them" in first.stdout
    shown = content_of(page)
    assert {row["title"]: row["miou"] for row in shown["rows"]} == {row: summary[row]["miou"] for row in rows}
    assert [one["summary"]["kept"] for one in shown["rounds"]] == [summary["pseudo_labels"]["kept"]]
    assert list(shown["rounds"][0]["histograms"]) == ["entropy", "confidence"]
    assert len(shown["gallery"]["pictures"]) == 4

    second = run(str(program), *words, folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "finished already" in second.stdout
    assert "$ esl-dist" not in second.stdout, "a program was started again"
    assert first.stdout.splitlines()[-3:] == second.stdout.splitlines()[-3:]


def test_a_folder_with_other_files_is_not_taken_for_a_demo_s(tmp_path: Path) -> None:
    for name in (".DS_Store", "demo.json.partial"):
        (tmp_path / name).touch()
    refuse_other_demo(tmp_path, {"seed": 0})
    (tmp_path / "demo.json").rename(tmp_path / "holiday.json")
    with pytest.raises(UserError, match="holds what is not of this demo; choose a folder of its own"):
        refuse_other_demo(tmp_path, {"seed": 0})
    assert not (tmp_path / "demo.json").exists()


def test_a_demo_of_another_seed_or_other_recipes_is_not_passed_off_as_this_one(tmp_path: Path) -> None:
    program = tmp_path / "small_demo.py"
    program.write_text(SMALL_DEMO)
    recipes = small_recipes(tmp_path / "recipes")
    asked = {"seed": 0, "recipes": {path.stem: path.read_text() for path in recipes.glob("*.yaml")}}
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/demo.json").write_text(json.dumps(asked))
    words = ["forked", f"output={tmp_path}/demo", f"recipes={recipes}"]
    done = run(str(program), *words, "seed=1", folder=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/demo: this demo was begun with another seed: 0 → 1; delete it first" in done.stderr
    assert "$ esl-dist" not in done.stdout


def test_a_program_that_fails_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    program = tmp_path / "small_demo.py"
    program.write_text(SMALL_DEMO)
    recipes = small_recipes(tmp_path / "recipes")
    (recipes / "source_only.yaml").write_text("bach_size: 4\n")
    words = ["started", f"output={tmp_path}/demo", f"recipes={recipes}"]
    done = run(str(program), *words, folder=tmp_path)
    assert done.returncode == 2
    assert "the nearest known one is 'batch_size'" in done.stderr
    assert "error: esl-dist train ended with exit code 2" in done.stderr
    assert not (tmp_path / "demo/summary.json").exists()


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    done = run("launch/demo.py", f"output={tmp_path}/demo", f"recipes={tmp_path}/nowhere", folder=tmp_path)
    assert done.returncode == 2
    assert (
        "nowhere/source_only.yaml: no such recipe; expected source_only, advent, advent_esl, self_training there"
        in done.stderr
    )
