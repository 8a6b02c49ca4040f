"""A labelling of the target from its settings to what is told of it."""

import time
from typing import Any

import torch

from esl_dist.config import PseudoLabel
from esl_dist.inference.inputs import open_inputs, print_plan
from esl_dist.inference.labelling.job import label_job, write_pseudo_labels
from esl_dist.ranks.collectives import print_on_main, warn
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import kept_table


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
    _tell_result(config, write_pseudo_labels(job), duration(time.monotonic() - began))


def _tell_result(config: PseudoLabel, summary: dict[str, Any], took: str) -> None:
    """Print what was kept of each class, and what may be done next."""
    print_on_main(kept_table(summary["classes"]))
    never = [name for name, row in summary["classes"].items() if row["pixels_predicted"] == 0]
    if never:
        warn(f"never predicted, so without a pseudo-label: {', '.join(never)}")
    accuracy = "" if summary["accuracy"] is None else f", {100 * summary['accuracy']:.1f} % of them right"
    print_on_main(f"{config.output}: {100 * summary['kept']:.1f} % of the pixels kept{accuracy}")
    following = f"python launch/train.py … target.path={config.target.path} pseudo_labels={config.output}"
    print_on_main(account(f"done in {took}", {"next": f"{following} network.start={config.checkpoint}"}))
