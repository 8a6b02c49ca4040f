"""Label the target: `accelerate launch launch/pseudo_label.py checkpoint=… target.path=… output=…`."""

import sys
import time
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
from esl_dist.errors import UserError
from esl_dist.inference.labelling.job import label_job, write_pseudo_labels
from esl_dist.inference.output_places import refuse_among_inputs, refuse_other_use
from esl_dist.inference.predictor import on_ranks, open_inputs, print_plan
from esl_dist.ranks.collectives import print_on_main, warn
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import kept_table
from esl_dist.urls import is_url


def main(config: PseudoLabel) -> None:
    """Write the pseudo-labels and print what was kept."""
    check(config)
    on_ranks(config, label)


def check(config: PseudoLabel) -> None:
    """Refuse to write among what is read, or among what is no pseudo-labels.

    Raises:
        UserError: naming the settings.
    """
    output, target = Path(config.output).resolve(), Path(config.target.path).resolve()
    inputs = [("target.path", config.target.path), ("checkpoint", config.checkpoint)]
    refuse_among_inputs("output", config.output, [*inputs, ("classes_from", config.classes_from)])
    if not is_url(config.target.path) and target.is_relative_to(output):
        raise UserError(f"output={config.output} holds target.path={config.target.path}; choose a folder of its own")
    refuse_other_use("output", Path(config.output))


def label(config: PseudoLabel, device: torch.device) -> None:
    """Label the target on the ranks that have joined."""
    began = time.monotonic()
    inputs = open_inputs(config.target, config, device)
    predictor = inputs.load(config.checkpoint)
    job = label_job(config, inputs.shards, predictor)
    limit = "floor" if config.score == "entropy" else "ceiling"
    facts = {
        "label size": "×".join(map(str, config.label_size or ())) or "that of the network's input",
        "trust": f"{config.score}, {limit} {job.made_with['bound']:g}",
        "output": config.output,
    }
    print_plan("pseudo-labels", inputs.shards, [predictor], facts)
    tell_result(config, write_pseudo_labels(job), duration(time.monotonic() - began))


def tell_result(config: PseudoLabel, summary: dict[str, Any], took: str) -> None:
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
