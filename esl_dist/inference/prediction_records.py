"""What a folder of predictions says of itself, in predictions.json: what they were made with, and what kinds there are.

It is written before the first prediction, so that whatever lies beside it was made with what it says.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esl_dist.checked import read_content
from esl_dist.config import Predict
from esl_dist.data.labels import ClassSet, class_set_to
from esl_dist.files import write_json
from esl_dist.inference.output_places import PREDICTIONS
from esl_dist.made_with import require_same
from esl_dist.models.weight_files import digest_of_weights
from esl_dist.prediction.predictor import Predictor
from esl_dist.ranks.collectives import is_main, wait_for_all

FORMAT = "esl-dist predictions"
FORMAT_VERSION = 1
REMEDY = "choose another output or delete it"


def made_with(config: Predict, predictor: Predictor, classes: ClassSet) -> dict[str, Any]:
    """Return what predictions depend on, as plain values; `classes` have the colours and raw ids that are written."""
    trained = predictor.trained
    return {
        "run": trained.name,
        "step": trained.step,
        "class_set": trained.class_set,
        "classes": class_set_to(classes),
        "weights": digest_of_weights(trained.network.state_dict()),
        "pictures": os.path.abspath(config.pictures),
        "size": None if predictor.size is None else list(predictor.size),
        "keep_aspect_ratio": config.keep_aspect_ratio,
        "window": config.window,
        "overlap": None if config.window is None else config.overlap,
        "mirror": config.mirror,
        "domain": predictor.statistics,
        "precision": predictor.precision,
        "device": predictor.device.type,
    }


def open_output(output: Path, made: dict[str, Any], kinds: Sequence[str]) -> None:
    """Write what predictions are made with into their folder, if that holds none that were made otherwise.

    Args:
        output: the folder; no other start works in it.
        made: see `made_with`.
        kinds: of files that are made now; those of earlier starts stay.

    Raises:
        UserError: on every rank: what is there was made otherwise.
    """
    file, before = output / PREDICTIONS, list[str]()
    if file.exists():
        content = read_content(file, REMEDY)
        content.version_of(FORMAT, [FORMAT_VERSION])
        told = f"{output}: holds predictions made with another"
        require_same(content.at("made_with").mapping(), made, told, REMEDY)
        before = [entry.text() for entry in content.at("kinds").entries()]
    # Not before every rank has read it.
    wait_for_all()
    if is_main():
        known = list(dict.fromkeys([*before, *kinds]))
        write_json(file, {"format": FORMAT, "format_version": FORMAT_VERSION, "kinds": known, "made_with": made})
    wait_for_all()
