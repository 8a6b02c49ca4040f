"""Pseudo-label jobs with nothing predicted yet."""

from pathlib import Path

from esl_dist.config import PseudoLabel
from esl_dist.config_files import from_dictionary
from esl_dist.inference.labelling.job import label_job
from esl_dist.inference.labelling.pieces import LabelJob
from esl_dist.prediction.predictor import Predictor
from tests.builders import write_shards
from tests.inference.trained import trained_network
from tests.training.small_runs import tiny_network


def job_of(folder: Path, keys: list[str], in_a_shard: int = 3) -> LabelJob:
    """Return a job, of a target of these keys, whose unfinished folder is there and empty."""
    target = write_shards(folder / "target", [(key, {"image.png": b""}) for key in keys], in_a_shard)
    words = {"checkpoint": "r", "target": {"path": "t"}, "output": str(folder / "labels")}
    job = label_job(
        from_dictionary(PseudoLabel, words, "tests"), target, Predictor(trained_network(tiny_network(1)), size=(2, 2))
    )
    job.unfinished.mkdir(parents=True)
    return job
