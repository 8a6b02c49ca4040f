"""What the documentation says is what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest

from esl_dist import config
from esl_dist.config_files import load_config

PROJECT = Path(__file__).resolve().parent.parent


def test_the_configuration_reference_is_that_of_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", PROJECT / "docs/make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (PROJECT / "docs/configuration.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run: python docs/make_configuration.py"


RECIPES = sorted(path for folder in ("demo", "camvid") for path in (PROJECT / "configs" / folder).glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_a_configuration_that_can_be(recipe: Path) -> None:
    given = [] if recipe.parent.name == "camvid" else ["name=n", "source.path=s", "target.path=t"]
    assert (
        load_config(config.Train, recipe, given).steps
        <= load_config(config.Train, recipe, given).optimizer.schedule_steps
    )


@pytest.mark.parametrize("page", ["README.md", "docs/design.md", "shards/README.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    named = set(
        re.findall(r"\b((?:esl_dist|launch|configs|shards|docs|tests)/[\w./-]*\w\.(?:py|ya?ml|md|txt))\b", text)
    )
    assert named, "the page names no file"
    assert sorted(name for name in named if not (PROJECT / name).exists()) == []
