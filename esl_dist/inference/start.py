"""What every use of networks begins with: join the ranks, open the pictures, load the networks, say what is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from esl_dist import config as settings
from esl_dist.data.class_sets import read_class_sets, same_classes
from esl_dist.data.images import as_size
from esl_dist.data.labels import ClassSet, class_names
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import UserError
from esl_dist.inference.predictor import Predictor, differences, predictor_for, size_text
from esl_dist.ranks.collectives import print_on_main, require_same_on_ranks, world_size
from esl_dist.ranks.session import joined_ranks, one_thread_on_cpu
from esl_dist.reporting.accounts import account
from esl_dist.runs.load import TrainedNetwork, load_trained

Config = TypeVar("Config", settings.Evaluate, settings.PseudoLabel)


def on_ranks(config: Config, use: Callable[[Config, torch.device], None]) -> None:
    """Join the ranks, and call `use` on each with the precision that the setting or the launcher asks for."""
    with joined_ranks(config.timeout_minutes, config.precision) as ranks:
        use(replace(config, precision=asked_precision(config.precision, ranks.precision)), ranks.device)


def asked_precision(setting: str | None, launched: str) -> str | None:
    """Return the precision that the setting or the launcher asks for; None if neither does.

    A launcher says no also where it was asked for nothing.
    """
    return setting or (None if launched == "no" else launched)


@dataclass(frozen=True)
class Inputs:
    """Pictures, and how networks are to see them.

    Attributes:
        shards: the pictures.
        class_sets: those of the setting `classes_from`, or else of the shards.
        device: where networks compute.
        size: the setting of the pictures' width and height.
        asked: the other settings.
    """

    shards: ShardReader
    class_sets: dict[str, ClassSet]
    device: torch.device
    size: list[int] | None
    asked: settings.Evaluate | settings.PseudoLabel

    def load(self, path: str | Path) -> Predictor:
        """Load a run, a checkpoint, or a file of weights, which takes one of the class sets if it has none of its own.

        Raises:
            UserError: it cannot be loaded, `classes_from` names other classes, or it cannot predict as is asked.
        """
        trained = load_trained(path, self.class_sets, self.asked.class_set, self.device)
        if self.asked.classes_from is not None and self.named_classes(trained) is None:
            raise UserError(
                f"classes_from={self.asked.classes_from}: has no class set {trained.class_set!r} of the network's "
                f"classes {', '.join(class_names(trained.classes))}"
            )
        return predictor_for(trained, self.shards, self.size, self.asked)

    def named_classes(self, trained: TrainedNetwork) -> ClassSet | None:
        """Return a network's classes with the colours and raw ids that the class sets give them; None: not there."""
        return same_classes(trained.class_set, trained.classes, self.class_sets)


def open_inputs(
    pictures: settings.Pictures, asked: settings.Evaluate | settings.PseudoLabel, device: torch.device
) -> Inputs:
    """Open the pictures.

    Raises:
        UserError: they or the place of `classes_from` cannot be read, or ranks were given others.
    """
    one_thread_on_cpu(device)
    shards = open_shards(pictures.path)
    require_same_on_ranks(shards.fingerprint(), "shards")
    named = asked.classes_from is not None
    class_sets = read_class_sets(Path(str(asked.classes_from))) if named else shards.index.class_sets
    return Inputs(shards, class_sets, device, pictures.size, asked)


def print_plan(title: str, shards: ShardReader, ensemble: Sequence[Predictor], more: Mapping[str, str]) -> None:
    """Say what is about to be done, `more` of it too, and what of it is another than in training."""
    first = ensemble[0].trained
    facts = {
        "pictures": f"{shards.folder}: {shards.index.dataset} {shards.index.split}, {len(shards)} samples",
        "network": " + ".join(f"{one.title}, {one.trained.architecture}" for one in ensemble),
        "classes": f"{first.class_set}, {len(first.classes)} classes",
        "size": " + ".join(dict.fromkeys(_size(one, shards) for one in ensemble)),
        "statistics": " + ".join(dict.fromkeys(map(_statistics, ensemble))),
        "precision": " + ".join(dict.fromkeys(one.precision for one in ensemble)),
        "device": f"{world_size()} process{'es' if world_size() > 1 else ''} on {ensemble[0].device.type}",
    }
    print_on_main(account(title, {**facts, **more}))
    for line in dict.fromkeys(line for one in ensemble for line in differences(one, shards)):
        print_on_main(f"note: {line}")


def _size(predictor: Predictor, shards: ShardReader) -> str:
    sizes, packed = predictor.trained.sizes, shards.index.image_size
    own = "" if predictor.size is not None or packed is None else f", {size_text(packed)}"
    as_trained = predictor.domain in sizes and as_size(sizes[predictor.domain]) == predictor.size
    return size_text(predictor.size) + own + (f", as the {predictor.domain} in training" if as_trained else "")


def _statistics(predictor: Predictor) -> str:
    return "of both domains together" if predictor.trained.keeps == "shared" else f"of the {predictor.statistics}"
