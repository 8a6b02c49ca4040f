"""A labelling of the target from its settings to what is told of it."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esl_dist.adaptation.entropy import HIGHEST_LEVEL
from esl_dist.config import PseudoLabel
from esl_dist.errors import UserError
from esl_dist.inference.inputs import open_inputs, print_plan
from esl_dist.inference.labelling.histograms import HISTOGRAMS, read_histograms
from esl_dist.inference.labelling.job import label_job, write_pseudo_labels
from esl_dist.inference.labelling.pieces import LabelJob
from esl_dist.ranks.collectives import is_main, print_on_main, warn
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.scores import kept_table
from esl_dist.reporting.tensorboard import Histogram, open_writer, write_histograms, write_scalars


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
    summary = write_pseudo_labels(job)
    curves = write_label_curves(job, summary) if is_main() else None
    _tell_result(config, summary, curves, duration(time.monotonic() - began))


def write_label_curves(job: LabelJob, summary: dict[str, Any]) -> Path | None:
    """Write thresholds, kept shares and histograms of scores to TensorBoard; returns the folder of the run's curves.

    A round of labelling has the step of the network that labelled. Curves that cannot be written cost a warning, and
    None is returned, as it is for a network that lies in no run's folder: what they show is beside the labels, too.

    Args:
        job: a finished one.
        summary: what it says.
    """
    trained, rows, file = job.predictor.trained, summary["classes"], job.output / HISTOGRAMS
    logs, step = trained.logs, trained.step or 0
    if logs is None:
        return None
    predicted = {name: row for name, row in rows.items() if row["pixels_predicted"]}
    shares = {"kept": summary["kept"], "accuracy": summary["accuracy"]}
    scalars = {f"pseudo_labels/{name}": share for name, share in shares.items() if share is not None}
    scalars |= {f"pseudo_label_threshold/{name}": row["threshold"] for name, row in rows.items()}
    scalars |= {
        f"pseudo_label_kept/{name}": row["pixels_kept"] / row["pixels_predicted"] for name, row in predicted.items()
    }
    try:
        # Jobs of earlier versions have none.
        histograms = read_histograms(file) if file.exists() else {}
        # In a folder of its own, as scores are: a training that goes on would hide what it does not know.
        with closing(open_writer(logs / "pseudo_labels" / job.output.resolve().name, None)) as writer:
            write_scalars(writer, scalars, step)
            for score, found in histograms.items():
                write_histograms(writer, _of_classes(score, found["classes"]), step)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        warn(f"{logs}: curves cannot be written ({reason}); {job.output} has what they show")
        return None
    return logs


def _of_classes(score: str, classes: dict[str, dict[str, Any]]) -> dict[str, Histogram]:
    """Return the histograms of classes that were predicted: scores in [0, 1], which the levels stand for."""
    return {
        f"{score}/{name}": Histogram(np.array(one["edges"]) / (HIGHEST_LEVEL + 1), np.array(one["pixels"]))
        for name, one in classes.items()
        if any(one["pixels"])
    }


def _tell_result(config: PseudoLabel, summary: dict[str, Any], curves: Path | None, took: str) -> None:
    """Print what was kept of each class, and what may be done next."""
    print_on_main(kept_table(summary["classes"]))
    never = [name for name, row in summary["classes"].items() if row["pixels_predicted"] == 0]
    if never:
        warn(f"never predicted, so without a pseudo-label: {', '.join(never)}")
    accuracy = "" if summary["accuracy"] is None else f", {100 * summary['accuracy']:.1f} % of them right"
    print_on_main(f"{config.output}: {100 * summary['kept']:.1f} % of the pixels kept{accuracy}")
    following = f"esl-dist train … target.path={config.target.path} pseudo_labels={config.output}"
    made = {"curves": "" if curves is None else f"tensorboard --logdir {curves}"}
    print_on_main(account(f"done in {took}", {**made, "next": f"{following} network.start={config.checkpoint}"}))
