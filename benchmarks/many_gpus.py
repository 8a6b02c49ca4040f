"""What N GPUs buy: a published training divided among them, and its mIoU: `python benchmarks/many_gpus.py FOLDER`.

The published batch is one picture of each domain. N GPUs take N pictures a step, so the same pictures are seen in an
N-th of the steps, and the rule of `divided` and `rescaled` says what else changes. It was written down before anything
was measured, and makes the recipes of `configs/*_8_gpus` from the published ones (a test holds them to it):

- steps, schedule, and steps between checkpoints and pictures: divided by N;
- SGD's rate: times N (the linear rule: Goyal et al. 2017, arXiv 1706.02677, section 2.1), or times √N, which keeps the
  variance of an update (Krizhevsky 2014, arXiv 1404.5997, who trains by the linear rule all the same);
- Adam's rate, of the discriminators: times √N (Malladi et al. 2022, arXiv 2205.10287). Theirs also lets the decay rates
  β become 1 − N (1 − β), which for the published β₁ = 0.9 ends at ten GPUs; here they stay;
- warm-up: a twentieth of the steps (Goyal et al.: 5 epochs of 90);
- batch norm: over each picture, as published, or over the N pictures of the step.

Measured is AdvEnt of `configs/demo` on drawn pictures, by seed of weights and order, in one process: how many share a
step does not show in its result (`docs/scaling.md`). What FOLDER holds already is not made again.
"""

import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.programs import PROJECT, packed_toytown, run
from esl_dist import config as settings
from esl_dist.checked import read_content
from esl_dist.config_files import load_config, save_config
from esl_dist.reporting.scores import scores_from

RECIPE = PROJECT / "configs/demo/advent.yaml"

SCENES = {"source_train": 400, "target_train": 400, "target_val": 100}
"""Of the demo."""

SIZE = (144, 72)
"""Width and height of pictures: the demo's are 192×96, which would take almost twice as long."""

ONE_PICTURE = ("batch_size=1", "steps=2800", "optimizer.schedule_steps=2800", "optimizer.learning_rate=0.0075")
"""The demo's recipe for one picture a step, as published trainings have: as many pictures as in 700 steps of four, and
a quarter of its rate, 0.03."""

GPUS = 8

SEEDS = (0, 1, 2)

WARM_UP_SHARE = 1 / 20
"""Of the steps."""


Rule = Callable[[int], float]
"""From a number of GPUs to the factor on SGD's rate."""

Change = Callable[[settings.Train], settings.Train]


def linear(gpus: int) -> float:
    """Return the factor of the linear rule on SGD's rate."""
    return float(gpus)


def divided(config: settings.Train, gpus: int) -> settings.Train:
    """Return the training that takes `gpus` times as many pictures a step, and as many in all."""
    kept = config.checkpoints
    return replace(
        config,
        batch_size=gpus * config.batch_size,
        steps=_part(config.steps, gpus),
        pictures_every=_part(config.pictures_every, gpus),
        checkpoints=replace(kept, every=_part(kept.every, gpus), keep_every=_part(kept.keep_every, gpus)),
        optimizer=replace(config.optimizer, schedule_steps=_part(config.optimizer.schedule_steps, gpus)),
    )


def _part(steps: int, gpus: int) -> int:
    """Return a `gpus`-th of so many steps, but 1 at least; 0, which is never, stays 0."""
    return max(1, round(steps / gpus)) if steps else 0


def rescaled(config: settings.Train, gpus: int, rule: Rule) -> settings.Train:
    """Return a divided training with the rates for so many pictures a step, and a warm-up.

    Args:
        config: the divided training, which still has the rates of one picture a step.
        gpus: among how many it is divided.
        rule: for SGD's rate.
    """
    options = config.optimizer
    rates = replace(
        options,
        learning_rate=rule(gpus) * options.learning_rate,
        discriminator_learning_rate=math.sqrt(gpus) * options.discriminator_learning_rate,
        warm_up_steps=round(WARM_UP_SHARE * config.steps),
    )
    return replace(config, optimizer=rates)


def normalised_over(config: settings.Train, what: str) -> settings.Train:
    """Return the training with batch norm over the `batch` or each `picture`."""
    return replace(config, network=replace(config.network, normalise_over=what))


@dataclass(frozen=True)
class Row:
    """A training that is compared with the others.

    Attributes:
        title: in the table.
        training: makes it from the one of one picture a step.
        seeds: of weights and order.
    """

    title: str
    training: Change
    seeds: tuple[int, ...] = SEEDS


def by_rule(rule: Rule, over: str) -> Change:
    """Return what makes the training that is divided and rescaled, with batch norm over the `batch` or `picture`."""
    return lambda published: normalised_over(rescaled(divided(published, GPUS), GPUS, rule), over)


ROWS: Mapping[str, Row] = {
    "published": Row("one picture a step, as published", lambda published: published),
    "same_rate": Row("steps divided, nothing else", lambda published: divided(published, GPUS)),
    "linear_batch": Row("rate × 8, warm-up", by_rule(linear, "batch")),
    "linear_picture": Row("rate × 8, warm-up", by_rule(linear, "picture")),
    "root_batch": Row("rate × √8, warm-up", by_rule(math.sqrt, "batch")),
    "root_picture": Row("rate × √8, warm-up", by_rule(math.sqrt, "picture")),
    "more_work": Row(
        "eight times the pictures: steps not divided", lambda published: replace(published, batch_size=GPUS), SEEDS[-1:]
    ),
}
"""By the name that runs have."""


def main() -> None:
    """Train and score what is missing, then print the table."""
    if len(sys.argv) != 2:
        sys.exit("error: name one folder for pictures, runs and scores: python benchmarks/many_gpus.py FOLDER")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(sys.argv[1])
    shards = packed_toytown(folder, SIZE, SCENES)
    found: dict[str, dict[int, float]] = {name: {} for name in ROWS}
    # A seed at a time, so that the rows of a start that is stopped can be compared.
    for seed in SEEDS:
        for name, row in ROWS.items():
            if seed in row.seeds:
                found[name][seed] = score(folder, shards, name, seed)
    print(table(found))


def training(folder: Path, shards: Path, name: str, seed: int) -> settings.Train:
    """Return the settings of the run of a row and a seed."""
    places = [f"source.path={shards}/source_train", f"target.path={shards}/target_train", f"experiments={folder}"]
    words = [*ONE_PICTURE, *places, f"name={name}_seed_{seed}", f"seed={seed}", "pictures_every=0"]
    return ROWS[name].training(load_config(settings.Train, RECIPE, words))


def score(folder: Path, shards: Path, name: str, seed: int) -> float:
    """Train and score, if that is not done; returns mIoU on the target's validation set, in percent."""
    config = training(folder, shards, name, seed)
    if not (output := folder / "scores" / f"{config.name}.json").exists():
        recipe = folder / "recipes" / f"{config.name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        save_config(config, recipe)
        run("launch/train.py", ["--config", str(recipe)])
        network = f"checkpoint={folder}/snapshots/{config.name}"
        run("launch/evaluate.py", [network, f"data.path={shards}/target_val", f"output={output}", "workers=0"])
    return 100 * float(scores_from(read_content(output, "delete it and start again"))["miou"])


def table(found: Mapping[str, Mapping[int, float]]) -> str:
    """Return the table of mIoU in percent, given by row and seed."""
    seeds = " | ".join(f"seed {seed}" for seed in SEEDS)
    lines = [
        f"| training | pictures × steps | rate of SGD, Adam | warm-up | batch norm over | {seeds} | mean | std |",
        "| --- | ---: | ---: | ---: | --- |" + " ---: |" * (len(SEEDS) + 2),
    ]
    for name, by_seed in found.items():
        config, scores = training(Path(), Path(), name, SEEDS[0]), list(by_seed.values())
        options = config.optimizer
        spread = [statistics.mean(scores), statistics.stdev(scores)] if len(scores) > 1 else [None, None]
        cells = [
            ROWS[name].title,
            f"{config.batch_size} × {config.steps}",
            f"{options.learning_rate:.2g}, {options.discriminator_learning_rate:.2g}",
            str(options.warm_up_steps),
            config.network.normalise_over,
            *("" if value is None else f"{value:.1f}" for value in [*map(by_seed.get, SEEDS), *spread]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
