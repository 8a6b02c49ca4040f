"""Label the target: `accelerate launch launch/pseudo_label.py checkpoint=… target.path=… output=…`."""

import sys
from pathlib import Path

import torch

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esl_dist.command_line import run_program
from esl_dist.config import PseudoLabel
from esl_dist.data.images import as_size
from esl_dist.data.loading import Samples, label_source
from esl_dist.data.shards import open_shards
from esl_dist.engine.distributed import (
    compute_the_same_on_any_number_of_ranks,
    is_main,
    joined_ranks,
    refuse_disagreement,
)
from esl_dist.engine.labelling import write_pseudo_labels
from esl_dist.engine.trained import load_trained


def main(config: PseudoLabel) -> None:
    """Write the pseudo-labels and print what was kept."""
    with joined_ranks(config.timeout_minutes) as ranks:
        label(config, ranks.accelerator.device)


def label(config: PseudoLabel, device: torch.device) -> None:
    """Label the target on the ranks that have joined."""
    compute_the_same_on_any_number_of_ranks(device)
    shards = open_shards(config.target.path)
    refuse_disagreement(shards.fingerprint(), "shards")
    trained = load_trained(config.checkpoint, shards.index.class_sets, config.class_set, device)
    labels = label_source(shards, trained.class_set, trained.classes) if config.compare_with_labels else None
    size = as_size(config.target.size)
    target = Samples(shards, size, labels, as_size(config.label_size) or size)
    summary = write_pseudo_labels(trained, target, config, device)
    if is_main():
        accuracy = "" if summary["accuracy"] is None else f", {100 * summary['accuracy']:.1f} % of them right"
        print(f"{config.output}: {100 * summary['kept']:.1f} % of the pixels kept{accuracy}")


if __name__ == "__main__":
    run_program(PseudoLabel, main)
