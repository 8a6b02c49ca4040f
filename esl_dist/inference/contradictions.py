"""Settings of programs that use trained networks, and what they may not be: known before torch is imported."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from esl_dist.config import Evaluate, Export, Predict, PseudoLabel
from esl_dist.data.class_sets import read_class_sets
from esl_dist.data.own_pictures import refuse_missing_pictures, searched
from esl_dist.data.shard_index import refuse_missing_shards
from esl_dist.environment import is_alone
from esl_dist.errors import UserError
from esl_dist.files import refuse_unwritable
from esl_dist.inference.exporting.files import is_export, refuse_unwritable_kind
from esl_dist.inference.output_places import (
    holds_scores,
    refuse_among_inputs,
    refuse_in_each_other,
    refuse_other_predictions,
    refuse_other_use,
    refuse_replacing,
)
from esl_dist.runs.layout import refuse_missing_network, refuse_missing_run
from esl_dist.urls import is_url

Check = Callable[[], None]


def check_evaluation(config: Evaluate) -> None:
    """Refuse settings that contradict each other, and to write over what is read or is no scores.

    Raises:
        UserError: naming the settings.
    """
    for check in checks_of_evaluation(config):
        check()
    if not is_alone():
        return
    refuse_missing_shards(config.data.path)
    if config.statistics_from is not None:
        refuse_missing_shards(config.statistics_from)
    for check in checks_of_scored(config):
        check()


def checks_of_evaluation(config: Evaluate) -> list[Check]:
    """Return what each refuse, with a UserError, one contradiction of an evaluation's settings."""
    networks, weights, is_ensemble = len(config.checkpoints), config.ensemble_weights, config.mode == "ensemble"
    contradictions = {
        "mode=ensemble needs its networks: checkpoints=[…,…]": is_ensemble and not networks,
        f"ensemble_weights={weights} is impossible: expected one for each of the {networks} checkpoints, or none": (
            is_ensemble and len(weights) not in (0, networks)
        ),
        "ensemble_weights are all 0; expected one above 0": is_ensemble and bool(weights) and not any(weights),
        "mode=ensemble takes checkpoints=[…,…], not checkpoint=…": is_ensemble and config.checkpoint is not None,
        f"mode={config.mode} needs a network: checkpoint=…": not is_ensemble and config.checkpoint is None,
        "checkpoints and ensemble_weights are for mode=ensemble": not is_ensemble and bool(networks or weights),
        f"prediction_format={config.prediction_format} is for predictions=FOLDER": (
            config.prediction_format != "colors" and config.predictions is None
        ),
        "domain=source contradicts statistics_from=…, which are the statistics used; leave out one": (
            config.domain == "source" and config.statistics_from is not None
        ),
        f"output={config.output}: a folder; expected the name of a JSON file": (
            config.output is not None and Path(config.output).is_dir()
        ),
        "wait_minutes is for mode=best": bool(config.wait_minutes) and config.mode != "best",
    }
    inputs = [
        ("data.path", config.data.path),
        ("statistics_from", config.statistics_from),
        ("classes_from", config.classes_from),
        ("checkpoint", config.checkpoint),
        *(("checkpoints", one) for one in config.checkpoints),
    ]
    return [
        *(partial(_refuse, message, contradicts) for message, contradicts in contradictions.items()),
        partial(_refuse_two_sizes, config.as_packed, "data.size", config.data.size),
        partial(refuse_among_inputs, "output", config.output, inputs),
        partial(refuse_among_inputs, "predictions", config.predictions, inputs),
        partial(refuse_replacing, "output", config.output, holds_scores, "holds no scores"),
        partial(refuse_in_each_other, "output", config.output, "predictions", config.predictions),
    ]


def checks_of_scored(config: Evaluate) -> list[Check]:
    """Return what each refuse, with a UserError, classes or networks of an evaluation that are not there."""
    checks: list[Check] = [partial(_refuse_missing_classes, config.classes_from)]
    if config.mode == "best":
        run = Path(str(config.checkpoint))
        return checks if config.wait_minutes else [*checks, partial(refuse_missing_run, run)]
    return [*checks, *(partial(refuse_missing_network, Path(network)) for network in networks_of(config))]


def networks_of(config: Evaluate) -> list[str]:
    """Return the places of the networks that are scored once."""
    return config.checkpoints if config.mode == "ensemble" else [str(config.checkpoint)]


def check_labelling(config: PseudoLabel) -> None:
    """Refuse to write among what is read, or among what is no pseudo-labels.

    Raises:
        UserError: naming the settings.
    """
    for check in checks_of_labelling(config):
        check()
    if not is_alone():
        return
    refuse_missing_shards(config.target.path)
    for check in checks_of_labelled(config):
        check()


def checks_of_labelling(config: PseudoLabel) -> list[Check]:
    """Return what each refuse, with a UserError, one contradiction, or one place for pseudo-labels that cannot be."""
    inputs = [("target.path", config.target.path), ("checkpoint", config.checkpoint)]
    return [
        partial(_refuse_two_sizes, config.as_packed, "target.size", config.target.size),
        partial(refuse_among_inputs, "output", config.output, [*inputs, ("classes_from", config.classes_from)]),
        partial(_refuse_around_target, config),
        partial(refuse_other_use, "output", Path(config.output)),
    ]


def checks_of_labelled(config: PseudoLabel) -> list[Check]:
    """Return what each refuse, with a UserError, what is not there: classes, a network, a place to write."""
    return [
        partial(_refuse_missing_classes, config.classes_from),
        partial(refuse_missing_network, Path(config.checkpoint)),
        partial(_refuse_unwritable_output, config),
    ]


def _refuse(message: str, contradicts: bool) -> None:
    if contradicts:
        raise UserError(message)


def _refuse_two_sizes(as_packed: bool, key: str, size: Sequence[int] | None) -> None:
    if as_packed and size is not None:
        raise UserError(f"as_packed=true contradicts {key}={list(size)}; leave out one of the two")


def _refuse_around_target(config: PseudoLabel) -> None:
    output, target = Path(config.output).resolve(), Path(config.target.path).resolve()
    if not is_url(config.target.path) and target.is_relative_to(output):
        raise UserError(f"output={config.output} holds target.path={config.target.path}; choose a folder of its own")


def _refuse_unwritable_output(config: PseudoLabel) -> None:
    if not Path(config.output).exists():
        refuse_unwritable("output", config.output, Path(config.output).resolve())


def check_predicting(config: Predict) -> None:
    """Refuse to write among what is read, or among what is no predictions.

    Raises:
        UserError: naming the settings.
    """
    output, pictures = Path(config.output).resolve(), Path(config.pictures).resolve()
    if config.overlap != Predict.overlap and config.window is None:
        raise UserError(f"overlap={config.overlap:g} is for window=[width,height]; give both or none")
    _refuse_two_sizes(config.as_packed, "size", config.size)
    if config.keep_aspect_ratio and config.as_packed:
        raise UserError(
            "as_packed=true changes no picture's size, so keep_aspect_ratio=true has no part in it; leave it out"
        )
    inputs = [
        ("pictures", searched(config.pictures)),
        ("checkpoint", config.checkpoint),
        ("classes_from", config.classes_from),
    ]
    refuse_among_inputs("output", config.output, inputs)
    if pictures.is_relative_to(output):
        raise UserError(f"output={config.output} holds pictures={config.pictures}; choose a folder of its own")
    refuse_other_predictions("output", Path(config.output))
    if not is_alone():
        return
    refuse_missing_pictures(config.pictures)
    _refuse_missing_classes(config.classes_from)
    refuse_missing_network(Path(config.checkpoint))
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
    refuse_replacing("output", config.output, is_export, "is no export of this program")
    refuse_missing_network(Path(config.checkpoint))
    _refuse_missing_classes(config.classes_from)
    refuse_unwritable("output", str(output.parent.absolute()), output.parent)


def _refuse_missing_classes(place: str | None) -> None:
    if place is not None and not is_url(place) and not Path(place).is_dir():
        try:
            read_class_sets(place)
        except UserError as error:
            raise UserError(f"classes_from: {error}; a folder of labelled shards is taken, too") from error
