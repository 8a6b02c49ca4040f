"""Label the target: `accelerate launch launch/pseudo_label.py checkpoint=… target.path=… output=…`."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esl_dist.early import end_at_interrupt

if __name__ == "__main__":
    # What follows takes seconds to import.
    end_at_interrupt()

import torch

from esl_dist.command_line import run_program
from esl_dist.config import PseudoLabel
from esl_dist.data.class_sets import read_class_sets
from esl_dist.data.images import as_size
from esl_dist.data.loading import Samples, label_source
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import UserError
from esl_dist.inference.conditions import (
    Conditions,
    asked_precision,
    conditions_for,
    differences,
    told_size,
    told_statistics,
)
from esl_dist.inference.labelling import write_pseudo_labels
from esl_dist.inference.output_folders import refuse_among_inputs, refuse_other_use
from esl_dist.inference.scoring import classes_named
from esl_dist.ranks.collectives import print_on_main, require_same_on_ranks, warn, world_size
from esl_dist.ranks.session import joined_ranks, one_thread_on_cpu
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import kept_table
from esl_dist.runs.load import TrainedNetwork, load_trained


def main(config: PseudoLabel) -> None:
    """Write the pseudo-labels and print what was kept."""
    check(config)
    with joined_ranks(config.timeout_minutes, config.precision) as ranks:
        precision = asked_precision(config.precision, ranks.precision)
        label(replace(config, precision=precision), ranks.device)


def check(config: PseudoLabel) -> None:
    """Refuse to write among what is read, or among what is no pseudo-labels.

    Raises:
        UserError: naming the settings.
    """
    output, target = Path(config.output).resolve(), Path(config.target.path).resolve()
    if output == target or target in output.parents:
        raise UserError(
            f"output={config.output} lies in target.path={config.target.path}, the pictures' own shards; choose a "
            "folder of its own for the pseudo-labels"
        )
    if output in target.parents:
        raise UserError(
            f"output={config.output} holds target.path={config.target.path}, the pictures' own shards; choose a "
            "folder of its own for the pseudo-labels"
        )
    inputs = [("checkpoint", config.checkpoint), ("classes_from", config.classes_from)]
    refuse_among_inputs("output", config.output, inputs)
    refuse_other_use("output", Path(config.output))


def label(config: PseudoLabel, device: torch.device) -> None:
    """Label the target on the ranks that have joined."""
    began = time.monotonic()
    one_thread_on_cpu(device)
    shards = open_shards(config.target.path)
    require_same_on_ranks(shards.fingerprint(), "shards")
    known = shards.index.class_sets if config.classes_from is None else read_class_sets(Path(config.classes_from))
    trained = load_trained(config.checkpoint, known, config.class_set, device)
    if config.classes_from is not None:
        classes_named(trained, config.classes_from)
    how = conditions_for(trained, shards, config.target.size, config, device)
    say_plan(config, trained, how, shards, device)
    labels = label_source(shards, trained.class_set, trained.classes) if config.compare_with_labels else None
    target = Samples(shards, how.size, labels, as_size(config.label_size) or how.size)
    summary = write_pseudo_labels(trained, target, config, device, how)
    say_result(config, summary, duration(time.monotonic() - began))


def say_plan(
    config: PseudoLabel, trained: TrainedNetwork, how: Conditions, shards: ShardReader, device: torch.device
) -> None:
    """Say what is about to be done, and what of it is another than in training."""
    step = "" if trained.step is None else f", step {trained.step}"
    bound = f"floor {config.entropy_floor:g}" if config.score == "entropy" else f"ceiling {config.confidence_ceiling:g}"
    facts = {
        "pictures": f"{shards.folder}: {shards.index.dataset} {shards.index.split}, {len(shards)} samples",
        "network": f"{trained.name}, {trained.architecture}{step}",
        "classes": f"{trained.class_set}, {len(trained.classes)} classes",
        "size": told_size(trained, how, shards),
        "label size": "that of the network's input"
        if config.label_size is None
        else "×".join(map(str, config.label_size)),
        "trust": f"{config.score}, {bound}",
        "statistics": told_statistics(trained, how),
        "precision": how.precision,
        "device": f"{world_size()} process{'es' if world_size() > 1 else ''} on {device.type}",
        "output": config.output,
    }
    print_on_main(account("pseudo-labels", facts))
    for line in differences(trained, how, shards):
        print_on_main(f"note: {line}")


def say_result(config: PseudoLabel, summary: dict[str, Any], took: str) -> None:
    """Print what was kept of each class, and what may be done next."""
    print_on_main(kept_table(summary["classes"]))
    never = [name for name, row in summary["classes"].items() if row["pixels_predicted"] == 0]
    if never:
        warn(f"never predicted, so without a pseudo-label: {', '.join(never)}")
    accuracy = "" if summary["accuracy"] is None else f", {100 * summary['accuracy']:.1f} % of them right"
    print_on_main(f"{config.output}: {100 * summary['kept']:.1f} % of the pixels kept{accuracy}")
    following = f"python launch/train.py … target.path={config.target.path} pseudo_labels={config.output}"
    print_on_main(account(f"done in {took}", {"next": f"{following} network.start={config.checkpoint}"}))


if __name__ == "__main__":
    run_program(PseudoLabel, main)
