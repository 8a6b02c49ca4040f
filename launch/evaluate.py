"""Score a checkpoint: `accelerate launch launch/evaluate.py checkpoint=… data.path=… output=scores.json`."""

from pathlib import Path

from esl_dist.command_line import run_program
from esl_dist.config import Evaluate
from esl_dist.data.images import as_size
from esl_dist.data.labels import class_names
from esl_dist.data.loading import Samples, label_source, refuse_mixed_sizes
from esl_dist.data.shards import open_shards
from esl_dist.engine.checkpoints import load_segmentation
from esl_dist.engine.distributed import is_main, refuse_disagreement, start_inference
from esl_dist.engine.evaluator import estimate_statistics, evaluate
from esl_dist.files import write_json
from esl_dist.reporting.scores import score_table, scores_of


def main(config: Evaluate) -> None:
    """Print the table of scores and write them as JSON."""
    device = start_inference().device
    network, checkpoint = load_segmentation(config.checkpoint, device)
    shards = open_shards(config.data.path)
    refuse_disagreement(shards.fingerprint(), "shards")
    labels = label_source(shards, checkpoint.class_set, checkpoint.classes)
    names = class_names(checkpoint.classes)
    size = as_size(config.data.size)
    if config.statistics_from is not None:
        pictures = Samples(open_shards(config.statistics_from), size)
        refuse_mixed_sizes(pictures.images, size, "data.size")
        estimate_statistics(network, pictures, config.workers, device, checkpoint.config.batch_size)
    confusion = evaluate(network, Samples(shards, size, labels), len(names), config.workers, device)
    scores = scores_of(confusion, names)
    if is_main():
        print(score_table({checkpoint.config.name: scores}))
        if config.output is not None:
            write_json(Path(config.output), {**scores, "checkpoint": config.checkpoint, "step": checkpoint.step})


if __name__ == "__main__":
    run_program(Evaluate, main)
