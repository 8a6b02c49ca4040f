"""Settings of programs that use trained networks, and what they may not be: known before torch is imported."""

from pathlib import Path

from esl_dist.config import Evaluate, Export, PseudoLabel
from esl_dist.config_files import read_yaml
from esl_dist.data.shard_index import refuse_missing_shards
from esl_dist.environment import is_alone
from esl_dist.errors import UserError
from esl_dist.files import refuse_unwritable
from esl_dist.inference.exporting.files import refuse_replacing_others, refuse_unwritable_kind
from esl_dist.inference.output_places import (
    refuse_among_inputs,
    refuse_in_each_other,
    refuse_other_use,
    refuse_replacing,
)
from esl_dist.runs.layout import refuse_missing_network, refuse_missing_run
from esl_dist.urls import is_url


def check_evaluation(config: Evaluate) -> None:
    """Refuse settings that contradict each other, and to write over what is read or is no scores.

    Raises:
        UserError: naming the settings.
    """
    networks, weights, is_ensemble = len(config.checkpoints), config.ensemble_weights, config.mode == "ensemble"
    contradictions = {
        "mode=ensemble needs its networks: checkpoints=[…,…]": is_ensemble and not networks,
        f"ensemble_weights={weights} is impossible: expected one for each of the {networks} checkpoints, or none": (
            is_ensemble and len(weights) not in (0, networks)
        ),
        "ensemble_weights are all 0; expected one above 0": is_ensemble and weights and not any(weights),
        "mode=ensemble takes checkpoints=[…,…], not checkpoint=…": is_ensemble and config.checkpoint is not None,
        f"mode={config.mode} needs a network: checkpoint=…": not is_ensemble and config.checkpoint is None,
        "checkpoints and ensemble_weights are for mode=ensemble": not is_ensemble and (networks or weights),
        f"prediction_format={config.prediction_format} is for predictions=FOLDER": (
            config.prediction_format != "colors" and config.predictions is None
        ),
        "domain=source contradicts statistics_from=…, which are the statistics used; leave out one": (
            config.domain == "source" and config.statistics_from is not None
        ),
        f"output={config.output}: a folder; expected the name of a JSON file": (
            config.output is not None and Path(config.output).is_dir()
        ),
        "wait_minutes is for mode=best": config.wait_minutes and config.mode != "best",
    }
    for message, contradicts in contradictions.items():
        if contradicts:
            raise UserError(message)
    inputs = [
        ("data.path", config.data.path),
        ("statistics_from", config.statistics_from),
        ("classes_from", config.classes_from),
        ("checkpoint", config.checkpoint),
        *(("checkpoints", one) for one in config.checkpoints),
    ]
    refuse_among_inputs("output", config.output, inputs)
    refuse_among_inputs("predictions", config.predictions, inputs)
    refuse_replacing("output", config.output)
    refuse_in_each_other("output", config.output, "predictions", config.predictions)
    if not is_alone():
        return
    refuse_missing_shards(config.data.path)
    if config.statistics_from is not None:
        refuse_missing_shards(config.statistics_from)
    _refuse_missing_classes(config.classes_from)
    if config.mode != "best":
        for network in config.checkpoints if is_ensemble else [str(config.checkpoint)]:
            refuse_missing_network(Path(network))
    elif not config.wait_minutes:
        refuse_missing_run(Path(str(config.checkpoint)))


def check_labelling(config: PseudoLabel) -> None:
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
    if not is_alone():
        return
    refuse_missing_shards(config.target.path)
    _refuse_missing_classes(config.classes_from)
    refuse_missing_network(Path(config.checkpoint))
    if not output.exists():
        refuse_unwritable("output", config.output, output)


def check_export(config: Export) -> None:
    """Refuse what cannot be written, and to write over what is read or is no export.

    Raises:
        UserError: naming the settings.
    """
    if not is_alone():
        raise UserError("an export is the work of one process; start it without a launcher of several")
    output = Path(config.output)
    refuse_unwritable_kind("output", config.output)
    inputs = [("checkpoint", config.checkpoint), ("classes_from", config.classes_from)]
    refuse_among_inputs("output", config.output, inputs)
    if output.is_dir():
        raise UserError(f"output={config.output}: a folder; expected the name of a file")
    refuse_replacing_others("output", config.output)
    refuse_missing_network(Path(config.checkpoint))
    _refuse_missing_classes(config.classes_from)
    refuse_unwritable("output", str(output.parent.absolute()), output.parent)


def _refuse_missing_classes(place: str | None) -> None:
    if place is not None and not is_url(place) and not Path(place).is_dir():
        read_yaml(Path(place))
