"""Recipes and data sets' descriptions by their names, from any folder: those of `configs/`, which the package brings.

A file of the user's goes before: `gta5_cityscapes/advent` is the recipe of that name only where there is no such file.
Where a path was meant, `configs/gta5_cityscapes/advent.yaml`, and there is no such file, it is said that this is taken.
In a checkout `esl_dist/recipes` is a link to `configs/`; in an installed package, a folder.
"""

import difflib
import os
import re
import sys
from pathlib import Path

from esl_dist.endings import own_rank
from esl_dist.errors import UserError
from esl_dist.files import as_given

RECIPES = Path(__file__).with_name("recipes")
DESCRIPTIONS = "datasets"
"""The folder of those that are no recipe of a training, but the description of a data set."""

LIKE_A_NAME = re.compile(r"[\w/-]{1,100}")
"""What may have been meant as a name, and not as a file's."""


def recipes() -> dict[str, Path]:
    """Return the recipes by name, such as `gta5_cityscapes/advent`, sorted."""
    files = sorted(RECIPES.glob("*/*.yaml"))
    return {f"{file.parent.name}/{file.stem}": file for file in files if file.parent.name != DESCRIPTIONS}


def descriptions() -> dict[str, Path]:
    """Return the descriptions of data sets by name, such as `cityscapes`, sorted."""
    return {file.stem: file for file in sorted(RECIPES.glob(f"{DESCRIPTIONS}/*.yaml"))}


def recipe_file(given: str) -> Path:
    """Return the file that is meant by `--config`: one of that path, or else the recipe of that name.

    Raises:
        UserError: there is neither, and it looks like a name; that there is no such file, who reads it says.
    """
    return _found(given, recipes(), "recipe")


def description_file(given: str) -> Path:
    """Return the file that is meant by `dataset=`, as `recipe_file` does: `cityscapes`, or a path.

    Raises:
        UserError: as `recipe_file`.
    """
    return _found(given, descriptions(), "data set")


def recipe_folder(given: str) -> Path:
    """Return a folder of recipes: the one of that path, or else of that name below `configs/`."""
    own = RECIPES / given.removeprefix("configs/")
    return own if not os.path.isdir(given) and own.is_dir() else Path(given)


def _found(given: str, known: dict[str, Path], kind: str) -> Path:
    name = given.removeprefix("configs/").removeprefix(f"{DESCRIPTIONS}/").removesuffix(".yaml")
    if os.path.isfile(given):
        return Path(given)
    if name in known:
        if given != name and own_rank() == 0:
            print(f"note: {given}: no such file; the {kind} {name} of this package is taken", file=sys.stderr)
        return known[name]
    if not os.path.lexists(given):
        if near := difflib.get_close_matches(name, known, 1):
            raise UserError(f"{as_given(given)}: no such configuration file; the nearest {kind} is {near[0]}")
        if LIKE_A_NAME.fullmatch(given):
            all_of_them = "esl-dist recipes lists them" if kind == "recipe" else f"they are {', '.join(known)}"
            raise UserError(f"{given}: neither a file nor a {kind} of this package; {all_of_them}")
    return Path(given)
