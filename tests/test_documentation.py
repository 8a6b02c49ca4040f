"""What the documentation says is what the code does."""

import ast
import importlib.util
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageColor

from benchmarks.many_gpus import by_rule, linear
from esl_dist import config
from esl_dist.adaptation.methods import METHODS
from esl_dist.config_files import describe, load_config, read_yaml
from esl_dist.training.contradictions import check_training
from esl_dist.training.unread import unread_settings

PROJECT = Path(__file__).resolve().parent.parent


PAGES = sorted(
    str(page.relative_to(PROJECT))
    for folder in ("", "docs", "shards", "docker", "benchmarks", "benchmarks/gpu")
    for page in (PROJECT / folder).glob("*.md")
)


def module_of(script: str) -> ModuleType:
    """Return a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, PROJECT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE_CONFIGURATION = module_of("docs/make_configuration.py")


def test_the_configuration_reference_is_that_of_the_settings() -> None:
    written = (PROJECT / "docs/configuration.md").read_text(encoding="utf-8")
    assert written == MAKE_CONFIGURATION.reference(), "run: python docs/make_configuration.py"


def test_every_setting_of_every_program_has_one_task() -> None:
    told = Counter(
        (program, row)
        for rows in MAKE_CONFIGURATION.settings_by_task().values()
        for row, programs in rows.items()
        for program in programs
    )
    every = {(name, row) for name, schema in MAKE_CONFIGURATION.PROGRAMS.items() for row in describe(schema)}
    assert told.keys() == every
    assert set(told.values()) == {1}


def commands_on(page: str) -> Iterator[list[str]]:
    """Yield the words of each line on a page that starts a program by `esl-dist`, from the program's name on."""
    text = (PROJECT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?: {4}|)[^|`\n]*?\b(?:esl-dist|-m esl_dist) ([a-z].*=.*)$", text, re.MULTILINE):
        yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_are_of_programs_and_settings_that_there_are(page: str) -> None:
    for program, *words in commands_on(page):
        assert program in MAKE_CONFIGURATION.PROGRAMS
        # The doctor takes the words of the program that it looks at.
        takes = MAKE_CONFIGURATION.PROGRAMS.values() if program == "doctor" else [MAKE_CONFIGURATION.PROGRAMS[program]]
        known = {key for schema in takes for key, *_ in describe(schema)}
        assert {word.partition("=")[0] for word in words if "=" in word} <= known, (program, words)
        for recipe in (after for before, after in pairwise(words) if before == "--config"):
            assert recipe == "…" or recipe.endswith(".yaml") or (PROJECT / f"configs/{recipe}.yaml").is_file(), recipe


def test_the_pages_have_commands() -> None:
    assert {program for page in PAGES for program, *_ in commands_on(page)} >= {"pack", "train", "evaluate", "predict"}


def test_every_page_has_its_place_in_the_navigation() -> None:
    navigation = next(
        node.value
        for node in ast.parse((PROJECT / "docs/conf.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "NAVIGATION"
    )
    named = [f"{page}.md" for pages in ast.literal_eval(navigation).values() for page in pages]
    assert sorted([*named, "README.md"]) == PAGES


GUARANTEES = re.split(r"^## ", (PROJECT / "docs/guarantees.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda text: text.partition("\n")[0].replace(" ", "_"))
def test_a_guarantee_has_one_number_and_one_test_that_there_is(guarantee: str) -> None:
    [number] = re.findall(r"\*\*(.*?)\*\*", guarantee)
    assert re.search(r"\d", number)
    [(file, name)] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", guarantee)
    body = ast.parse((PROJECT / file).read_text()).body
    assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}


RECIPES = sorted(path for path in (PROJECT / "configs").glob("*/*.yaml") if path.parent.name != "datasets")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_a_configuration_that_can_be(recipe: Path) -> None:
    given = ["source.path=s", "target.path=t"] if recipe.parent.name == "demo" else []
    loaded = load_config(config.Train, recipe, given)
    assert loaded.steps <= loaded.optimizer.schedule_steps
    check_training(loaded)
    assert unread_settings(loaded) == [], "no effect beside the others"


DIVIDED = [path for path in RECIPES if path.parent.name.endswith("_8_gpus")]
TEACHERS = [path for path in RECIPES if path.stem in ("self_training", "masked_consistency", "vfm_uda")]
PUBLISHED = [
    path for path in RECIPES if path.parent.name not in ("demo", "camvid") and path not in [*DIVIDED, *TEACHERS]
]
NAMES = {"gta5": "GTA5", "synthia": "SYNTHIA", "cityscapes": "Cityscapes", "mapillary": "Mapillary"}


def test_there_is_a_recipe_for_every_pair_of_data_sets_and_method() -> None:
    names = {f"{recipe.parent.name}/{recipe.stem}" for recipe in PUBLISHED}
    methods = ("source_only", "minent", "advent", "advent_esl")
    pairs = [f"{source}_{target}" for source in ("gta5", "synthia") for target in ("cityscapes", "mapillary")]
    assert names == {f"{pair}/{method}" for pair in pairs for method in methods}


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_published_recipes_have_the_published_settings(recipe: Path) -> None:
    loaded = load_config(config.Train, recipe)
    source, target = (NAMES[name] for name in recipe.parent.name.split("_"))
    splits = {"GTA5": "all", "SYNTHIA": "all", "Cityscapes": "train", "Mapillary": "training"}
    assert loaded.name == f"{recipe.parent.name}_{recipe.stem}"
    assert (loaded.source.path, loaded.source.size) == (f"data/shards/{source}/{splits[source]}", [1280, 720])
    assert (loaded.target.path, loaded.target.size) == (f"data/shards/{target}/{splits[target]}", [1024, 512])
    classes = {"GTA5_Cityscapes": 19, "SYNTHIA_Cityscapes": 16}.get(f"{source}_{target}", 7)
    assert loaded.class_set == f"cityscapes{classes}"
    for name in (source, target):
        layout = read_yaml(PROJECT / f"configs/datasets/{name.lower()}.yaml")
        assert layout["root"] == f"data/{name}"
        assert len(layout["class_sets"][loaded.class_set]) == classes
        assert splits[name] in layout["splits"]
    esl = recipe.stem == "advent_esl"
    assert loaded.pseudo_labels == (f"experiments/pseudo_labels/{recipe.parent.name}" if esl else None)
    assert loaded.method.name == ("advent" if esl else recipe.stem)
    network, optimizer = loaded.network, loaded.optimizer
    assert (network.architecture, network.auxiliary_head, network.batch_norm) == ("resnet101", True, "shared")
    assert vars(optimizer.multipliers) == {"stem": 1, "blocks": 3, "shortcuts": 4, "heads": 10}
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (2.5e-4, 0.9, 5e-4)
    assert (optimizer.discriminator_learning_rate, optimizer.discriminator_betas) == (1e-4, [0.9, 0.99])
    assert (optimizer.schedule_steps, optimizer.schedule_power, loaded.steps) == (250_000, 0.9, 120_000)
    assert (loaded.batch_size, loaded.checkpoints.every, loaded.checkpoints.keep_every) == (1, 2000, 2000)
    assert (loaded.method.cross_entropy.main, loaded.method.cross_entropy.auxiliary) == (1.0, 0.1)
    assert (loaded.method.target.main, loaded.method.target.auxiliary) == (1e-3, 2e-4)


@pytest.mark.parametrize(
    "recipe",
    [path for path in TEACHERS if path.parent.name != "demo"],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_recipes_with_a_teacher_have_the_settings_that_their_papers_share(recipe: Path) -> None:
    loaded = load_config(config.Train, recipe)
    assert loaded.name == f"{recipe.parent.name}_{recipe.stem}"
    assert (loaded.source.path, loaded.target.path) == ("data/shards/GTA5/all", "data/shards/Cityscapes/train")
    options, teacher, source = loaded.optimizer, loaded.method.teacher, loaded.source
    assert (options.kind, options.weight_decay, options.betas) == ("adamw", 0.01, [0.9, 0.999])
    assert (options.warm_up_steps, options.schedule_power, options.multipliers.heads) == (1500, 1.0, 10)
    assert loaded.steps == options.schedule_steps == 40_000
    assert (teacher.momentum, teacher.trust, teacher.confidence) == (0.999, "share", 0.968)
    assert (source.largest_class_share, source.mirror, loaded.target.mirror) == (0.75, True, True)
    assert source.crop == loaded.target.crop
    # Published of labels at GTA5's own size.
    assert source.rare_classes.least_pixels == round(3000 * math.prod(source.size) / (1914 * 1052))
    assert loaded.method.masks.ratio == 0.7


@pytest.mark.parametrize("recipe", DIVIDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_for_eight_gpus_is_the_published_one_by_the_stated_rule(recipe: Path) -> None:
    pair = recipe.parent.name.removesuffix("_8_gpus")
    published = load_config(config.Train, recipe.parent.with_name(pair) / recipe.name)
    expected, found = by_rule(linear, "picture")(published), load_config(config.Train, recipe)
    # Written with five digits.
    assert found.optimizer.discriminator_learning_rate == pytest.approx(8**0.5 * 1e-4, rel=1e-5)
    found.optimizer.discriminator_learning_rate = expected.optimizer.discriminator_learning_rate
    expected.name = f"{pair}_8_gpus_{recipe.stem}"
    expected.pseudo_labels = published.pseudo_labels and f"{published.pseudo_labels}_8_gpus"
    assert found == expected


def test_the_table_of_published_settings_names_only_settings_there_are() -> None:
    known = {
        key
        for schema in (config.Train, config.Evaluate, config.PseudoLabel, config.Prepare)
        for key, *_ in describe(schema)
    }
    page = (PROJECT / "docs/published.md").read_text(encoding="utf-8")
    commands = re.findall(r"[ \"`]([a-z_.]+)=", page)
    assert commands
    assert set(commands) - {"key"} <= known


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    named = set(
        re.findall(r"(?<![\w/])((?:esl_dist|launch|configs|shards|docs|tests)/[\w./-]*\w\.(?:py|yaml|md|txt))\b", text)
    )
    assert sorted(name for name in named if not (PROJECT / name).exists()) == []


def test_a_link_of_a_page_leads_to_a_file() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", (PROJECT / page).read_text(encoding="utf-8"))
    ]
    assert len(links) > len(PAGES)
    assert [(page, target) for page, target in links if not ((PROJECT / page).parent / target).exists()] == []


def test_the_picture_of_the_demo_has_a_column_a_network_and_a_row_a_scene() -> None:
    draw = module_of("docs/draw_demo.py")
    columns = {"a": ("red", "lime"), "b": ("blue", "black")}
    laid = draw.side_by_side(
        {name: [Image.new("RGB", (60, 30), one) for one in colors] for name, colors in columns.items()}
    )
    right, lower, top = 60 + draw.GAP, 30 + draw.GAP, draw.TITLE_HEIGHT
    assert laid.size == (right + 60, top + lower + 30)
    for column, colors in enumerate(columns.values()):
        for row, color in enumerate(colors):
            place = (column * right, top + row * lower)
            assert laid.crop((*place, place[0] + 60, place[1] + 30)).getcolors() == [(1800, ImageColor.getrgb(color))]


def test_the_readme_names_every_method() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in text] == []
