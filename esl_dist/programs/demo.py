"""The whole loop on Toytown: draw, pack, train, pseudo-label, score, one table (`make demo`).

Source only and AdvEnt are trained once, and then gone on with for as many steps: with nothing new, with ESL's
pseudo-labels, by self-training. So a gain of these can be told from that of a longer training.

It starts the programs a user would start, one after another, and prints each command. A stopped demo goes on where it
stopped; a finished one only prints its table.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from esl_dist.called import COMMAND, PACKAGE
from esl_dist.checked import read_content
from esl_dist.config import Demo
from esl_dist.early import STATE_FILE, give_interrupt_back
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX, write_json
from esl_dist.made_with import require_same
from esl_dist.recipes_by_name import recipe_folder
from esl_dist.stop_signals import run_to_its_end

SCENES = {"source_train": 400, "target_train": 400, "target_val": 100}
RECIPES = ("source_only", "advent", "advent_esl", "self_training")

TRAININGS = {
    "source_only": ("source_only", None),
    "source_only_long": ("source_only", "source_only"),
    "advent": ("advent", None),
    "advent_long": ("advent", "advent"),
    "advent_esl": ("advent_esl", "advent"),
    "self_training": ("self_training", "advent"),
}
"""Name of a run → its recipe, and the run from whose network it starts, or None: from random weights."""

ROWS = {
    "source_only": ("source only", "source_only"),
    "source_only_target_statistics": ("source only, target statistics", "source_only"),
    "source_only_long_target_statistics": ("source only, trained as long, target statistics", "source_only_long"),
    "advent": ("AdvEnt", "advent"),
    "advent_long": ("AdvEnt, trained as long", "advent_long"),
    "advent_esl": ("AdvEnt + ESL", "advent_esl"),
    "self_training": ("AdvEnt, then self-training", "self_training"),
}
"""Name of a row of the summary → its title in the table, and the run that is scored."""

REPORT = "report.html"

TARGET_STATISTICS = "_target_statistics"
"""Ends the name of a row for which the target's batch-norm statistics are estimated before scoring."""


def main(config: Demo) -> None:
    """Run what is still missing, then print the table and leave summary.json."""
    name = "demo" if config.seed == 0 else f"demo_seed_{config.seed}"
    recipes = recipe_folder(config.recipes)
    folder = Path(config.output) if config.output is not None else Path("experiments") / name
    refuse_other_demo(folder, {"seed": config.seed, "recipes": read_recipes(recipes)})
    summary_file = folder / "summary.json"
    if summary_file.is_file():
        print(f"finished already; delete {folder} to run the demo again\n")
    else:
        write_json(summary_file, run_demo(folder, recipes, config.seed))
    if not (page := folder / REPORT).is_file():
        run_step("report", *(str(folder / "snapshots" / name) for name in TRAININGS), f"output={page}")
    print_summary(read_demo_summary(summary_file))
    print(f"\n{summary_file} holds the same figures; curves: tensorboard --logdir {folder / 'logs'}")
    print(f"{page} shows them, the pseudo-labels and pictures: open it in a browser")


def read_recipes(folder: Path) -> dict[str, str]:
    """Return the text of each recipe.

    Raises:
        UserError: one is missing.
    """
    try:
        return {name: (folder / f"{name}.yaml").read_text() for name in RECIPES}
    except OSError as error:
        raise UserError(f"{error.filename}: no such recipe; expected {', '.join(RECIPES)} there") from error


def refuse_other_demo(folder: Path, asked: dict[str, Any]) -> None:
    """Note what the demo in `folder` is made of.

    Raises:
        UserError: it was begun with something else, or it is not the demo's.
    """
    note = folder / "demo.json"
    if not note.is_file():
        if any(not _is_left_over(file.name) for file in folder.glob("*")):
            raise UserError(f"{folder}: holds what is not of this demo; choose a folder of its own")
        write_json(note, asked)
    else:
        before = read_content(note, f"delete {folder} and start again").mapping()
        require_same(before, asked, f"{folder}: this demo was begun with another", "delete it first")


def _is_left_over(name: str) -> bool:
    """Say whether a file is hidden, or of a start that was killed before there was a note."""
    return name.startswith(".") or name.endswith(PARTIAL_SUFFIX)


def run_demo(folder: Path, recipes: Path, seed: int) -> dict[str, Any]:
    """Go through all programs and return the summary."""
    # Not before: torch takes seconds, and a finished demo does without it.
    from esl_dist.inference.labelling.job import SUMMARY
    from esl_dist.inference.labelling.labels import read_summary

    give_interrupt_back()
    shards = prepare_shards(folder, seed)
    data = [f"source.path={shards}/source_train", f"target.path={shards}/target_train"]

    pseudo_labels = folder / "pseudo_labels"
    for name, (recipe, start) in TRAININGS.items():
        words = list(data)
        if name == "advent_esl":
            label(folder, shards, pseudo_labels)
            words.append(f"pseudo_labels={pseudo_labels}")
        if start is not None:
            words.append(f"network.start={folder}/snapshots/{start}")
        train(folder, recipes / f"{recipe}.yaml", name, seed, *words)

    scores = {name: evaluate(folder, shards, name) for name in ROWS}
    labelled = read_summary(pseudo_labels / SUMMARY)
    return {
        **{name: {"miou": one["miou"], "iou": one["iou"]} for name, one in scores.items()},
        "pseudo_labels": {"kept": labelled["kept"], "accuracy": labelled["accuracy"]},
    }


def prepare_shards(folder: Path, seed: int) -> Path:
    """Draw Toytown and pack its splits, if that is not done; returns the folder of the splits' shards."""
    from esl_dist.data.shard_index import INDEX_NAME
    from esl_dist.data.toytown import write_toytown
    from esl_dist.reporting.progress import progress

    shards = folder / "shards"
    if all((shards / split / INDEX_NAME).is_file() for split in SCENES):
        return shards
    pictures = folder / "toytown"
    total = sum(SCENES.values())
    write_toytown(pictures, seed=seed, counts=SCENES, progress=lambda scenes: progress(scenes, total, "drawing"))
    for split in SCENES:
        run_step(
            "pack",
            "dataset=toytown",
            f"root={pictures}",
            f"split={split}",
            f"output={shards / split}",
        )
    return shards


def train(folder: Path, recipe: Path, name: str, seed: int, *settings: str) -> None:
    """Train a recipe as the run `name`."""
    run_step(
        "train",
        "--config",
        str(recipe),
        f"name={name}",
        f"experiments={folder}",
        f"seed={seed}",
        *settings,
    )


def label(folder: Path, shards: Path, pseudo_labels: Path) -> None:
    """Label the target by the network of AdvEnt."""
    run_step(
        "pseudo-label",
        f"checkpoint={folder}/snapshots/advent",
        f"target.path={shards}/target_train",
        f"output={pseudo_labels}",
        "compare_with_labels=true",
        "count_both_scores=true",
        "workers=0",
    )


def evaluate(folder: Path, shards: Path, name: str) -> dict[str, Any]:
    """Score the run of a row on the target's validation set and return the scores."""
    from esl_dist.reporting.scores import scores_from

    output = folder / "scores" / f"{name}.json"
    run_step(
        "evaluate",
        f"checkpoint={folder}/snapshots/{ROWS[name][1]}",
        f"data.path={shards}/target_val",
        f"output={output}",
        "workers=0",
        *([f"statistics_from={shards}/target_train"] if name.endswith(TARGET_STATISTICS) else []),
    )
    return scores_from(read_content(output, "delete it and start again"))


def run_step(command: str, *words: str) -> None:
    """Run one program of this package, whichever one the environment or the folder has.

    Raises:
        UserError: it failed; its own message stands above.
    """
    print(f"\n$ {COMMAND} {command} {shlex.join(words)}", flush=True)
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    # The state file is for how the demonstration gets on, not its parts.
    environment = {name: value for name, value in os.environ.items() if name != STATE_FILE} | {"PYTHONPATH": path}
    code = run_to_its_end([sys.executable, "-P", "-m", PACKAGE, command, *words], environment)
    if code:
        raise UserError(f"{COMMAND} {command} ended with exit code {code}; its message is above")


def read_demo_summary(file: Path) -> dict[str, Any]:
    """Read the figures of a finished demo.

    Raises:
        UserError: they are not those that `run_demo` returns.
    """
    from esl_dist.reporting.scores import scores_from

    content = read_content(file, "delete it and start again")
    for name in ROWS:
        scores_from(content.at(name))
    for key in ("kept", "accuracy"):
        content.at("pseudo_labels").at(key).number(0, 1)
    summary: dict[str, Any] = content.value
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print the table and a line on the pseudo-labels."""
    from esl_dist.reporting.scores import score_table

    print(score_table({title: summary[name] for name, (title, _) in ROWS.items()}))
    kept, accuracy = (100 * summary["pseudo_labels"][key] for key in ("kept", "accuracy"))
    print(f"\npseudo-labels: {kept:.1f} % of the target's pixels kept, {accuracy:.1f} % of them right")
    print("IoU in percent on the target's validation set. AdvEnt and what starts from it keep batch-norm statistics")
    print(
        "per domain and are scored with the target's. ESL and self-training go on from AdvEnt for as many steps again:"
    )
    print("their gain is what they have over AdvEnt, trained as long.")
