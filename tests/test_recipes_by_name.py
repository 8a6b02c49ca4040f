"""Recipes and descriptions are found by name from any folder; a file of the user's goes before."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_dist.errors import UserError
from esl_dist.recipes_by_name import RECIPES, description_file, descriptions, recipe_file, recipe_folder, recipes


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_and_description_is_found() -> None:
    assert {recipe_file(name) for name in recipes()} == {
        f for f in RECIPES.glob("*/*.yaml") if f.parent.name != "datasets"
    }
    assert {description_file(name) for name in descriptions()} == {*RECIPES.glob("datasets/*.yaml")}


@pytest.mark.parametrize(
    "given", ["demo/advent", "demo/advent.yaml", "configs/demo/advent.yaml", "configs/demo/advent"]
)
def test_a_recipe_is_found_by_its_name_and_by_its_place_in_a_checkout(given: str) -> None:
    assert recipe_file(given) == RECIPES / "demo/advent.yaml"


@pytest.mark.parametrize("given", ["camvid", "camvid.yaml", "datasets/camvid", "configs/datasets/camvid.yaml"])
def test_a_description_is_found_with_the_lists_that_it_names(given: str) -> None:
    assert description_file(given) == RECIPES / "datasets/camvid.yaml"
    assert (description_file(given).parent / "camvid_dusk_train.txt").is_file()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_path_that_is_none_is_said_once_to_be_taken_for_a_name(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    recipe_file("demo/advent")
    description_file("camvid")
    assert capsys.readouterr().err == ""
    recipe_file("configs/demo/advent.yaml")
    description_file("camvid.yaml")
    said = [
        "note: configs/demo/advent.yaml: no such file; the recipe demo/advent of this package is taken",
        "note: camvid.yaml: no such file; the data set camvid of this package is taken",
    ]
    assert capsys.readouterr().err.splitlines() == (said if rank == 0 else [])


def test_a_file_of_the_users_goes_before_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "demo/advent").mkdir(parents=True)
    assert recipe_file("demo/advent") == RECIPES / "demo/advent.yaml"
    (tmp_path / "demo/advent.yaml").touch()
    assert recipe_file("demo/advent.yaml") == Path("demo/advent.yaml")
    (tmp_path / "camvid").touch()
    assert description_file("camvid") == Path("camvid")


def test_a_folder_of_recipes_is_found_and_the_users_goes_before(tmp_path: Path) -> None:
    assert recipe_folder("configs/demo") == recipe_folder("demo") == RECIPES / "demo"
    assert recipe_folder("gone") == Path("gone")
    (tmp_path / "configs/demo").mkdir(parents=True)
    assert recipe_folder("configs/demo") == Path("configs/demo")


@pytest.mark.parametrize(
    ("found", "given", "told"),
    [
        (recipe_file, "gta5_cityscape/advent", "no such .*; the nearest recipe is gta5_cityscapes/adv"),
        (description_file, "configs/datasets/cityscape.yaml", "no such .*; the nearest data set is cityscapes$"),
        (recipe_file, "zzz", "neither a file nor a recipe of this package; esl-dist recipes lists them$"),
        (description_file, "zzz", "neither a file nor a data set of this package; they are camvid, cityscapes, "),
    ],
)
def test_a_name_that_there_is_not_gets_the_near_one_or_what_there_is(
    found: Callable[[str], Path], given: str, told: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(given)}: {told}"):
        found(given)


@pytest.mark.parametrize("given", ["missing.yaml", "a\0b", "a" * 5000, "", "/dev/null"])
def test_what_is_near_to_nothing_is_left_to_who_reads_the_file(given: str) -> None:
    assert recipe_file(given) == Path(given)
