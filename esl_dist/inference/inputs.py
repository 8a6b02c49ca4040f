"""Pictures, and the conditions under which networks see them: whose they are, at which size, in which precision.

They are those of the training unless others are asked for; differences are printed, because they lower scores silently.
Every program that uses networks starts here: it joins the ranks, opens the pictures, loads, and says what it will do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import torch

from esl_dist import config as settings
from esl_dist.config import Domain
from esl_dist.data.cache import Cache, cache_of
from esl_dist.data.class_sets import read_class_sets, same_classes
from esl_dist.data.images import Size, as_size
from esl_dist.data.labels import ClassSet, class_names
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import UserError
from esl_dist.prediction.predictor import Precision, Predictor, domain_of
from esl_dist.ranks.collectives import note_progress, print_on_main, require_same_on_ranks, world_size
from esl_dist.ranks.precision import missing
from esl_dist.ranks.session import joined_ranks
from esl_dist.reporting.accounts import account
from esl_dist.runs.trained import TrainedNetwork, load_trained

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
        size: the setting of the pictures' width and height; null: those of the training.
        asked: the other settings: `as_packed`, `domain` and `precision`, where null is those of the training.
        cache: where shards from far away are kept.
    """

    shards: ShardReader
    class_sets: dict[str, ClassSet]
    device: torch.device
    size: list[int] | None
    asked: settings.Evaluate | settings.PseudoLabel
    cache: Cache | None = None

    def load(self, path: str | Path) -> Predictor:
        """Load a run, a checkpoint, or a file of weights, which takes one of the class sets if it has none of its own.

        Raises:
            UserError: it cannot be loaded, `classes_from` names other classes, or it cannot predict as is asked.
        """
        trained, _ = named_network(path, self.class_sets, self.asked, self.device)
        return self.predictor(trained)

    def named_classes(self, trained: TrainedNetwork) -> ClassSet | None:
        """Return a network's classes with the colours and raw ids that the class sets give them; None: not there."""
        return same_classes(trained.class_set, trained.classes, self.class_sets)

    def predictor(self, trained: TrainedNetwork) -> Predictor:
        """Return a network with the conditions under which it sees the pictures.

        Raises:
            UserError: statistics of the source that the network does not have, or fp16 asked for on CPU.
        """
        asked = self.asked
        domain = cast(Domain, asked.domain or domain_of(trained.shards, trained.data_sets, self.shards))
        if asked.domain is not None:
            refuse_missing_statistics(trained, asked.domain)
        if asked.as_packed and self.size is not None:
            raise UserError(f"as_packed=true contradicts the size {self.size}; leave out one of the two")
        size = None if asked.as_packed else as_size(self.size or trained.sizes.get(domain))
        precision = asked.precision or trained.precision or "no"
        if (problem := missing(precision, self.device)) is not None:
            if asked.precision is not None:
                raise UserError(f"precision={asked.precision} {problem}")
            precision = "no"
        return Predictor(trained, domain, size, cast(Precision, precision))


def named_network(
    path: str | Path,
    class_sets: dict[str, ClassSet],
    asked: settings.Evaluate | settings.PseudoLabel | settings.Export,
    device: torch.device,
) -> tuple[TrainedNetwork, ClassSet]:
    """Load a run, a checkpoint or a file of weights; returns it and its classes as the class sets have them.

    Those are the network's own, with the colours and raw ids that `class_sets` give them, if they are there.

    Raises:
        UserError: it cannot be loaded, or `classes_from` names other classes.
    """
    trained = load_trained(path, class_sets, asked.class_set, device)
    named = same_classes(trained.class_set, trained.classes, class_sets)
    if asked.classes_from is not None and named is None:
        raise UserError(
            f"classes_from={asked.classes_from}: has no class set {trained.class_set!r} of the network's "
            f"classes {', '.join(class_names(trained.classes))}"
        )
    return trained, named or trained.classes


def refuse_missing_statistics(trained: TrainedNetwork, domain: str) -> None:
    """Make sure that a network has batch-norm statistics of the domain whose are asked for.

    Raises:
        UserError: they are the target's alone.
    """
    if domain == "source" and trained.keeps == "target":
        raise UserError(
            f"{trained.name}: domain=source is impossible: a file of weights holds the batch-norm statistics of "
            "the target alone; give the run or a checkpoint of it"
        )


def open_inputs(
    pictures: settings.Pictures, asked: settings.Evaluate | settings.PseudoLabel, device: torch.device
) -> Inputs:
    """Open the pictures.

    Raises:
        UserError: they or the place of `classes_from` cannot be read, or ranks were given others.
    """
    # A convolution adds in another order on another number of threads: the number of ranks must not change a bit. And
    # what is made of predictions has threads of its own.
    torch.set_num_threads(1)
    cache = cache_of(asked.cache.folder, asked.cache.gigabytes, asked.timeout_minutes, note_progress)
    shards = open_shards(pictures.path, cache=cache)
    require_same_on_ranks(shards.fingerprint(), "shards")
    named = asked.classes_from is not None
    class_sets = read_class_sets(str(asked.classes_from), cache) if named else shards.index.class_sets
    return Inputs(shards, class_sets, device, pictures.size, asked, cache)


def with_common_size(ensemble: Sequence[Predictor]) -> list[Predictor]:
    """Let networks of whose training nothing is known see pictures at the one size of the others, if there is one."""
    sizes = {one.size for one in ensemble if one.domain in one.trained.sizes}
    return [replace(one, size=next(iter(sizes))) for one in ensemble] if len(sizes) == 1 else list(ensemble)


def _text(size: Size | None) -> str:
    return "as packed" if size is None else f"{size[0]}×{size[1]}"


def differences(predictor: Predictor, shards: ShardReader) -> Iterator[str]:
    """Yield one line for each condition that is another than that of the training."""
    trained, domain, size = predictor.trained, predictor.domain, _text(predictor.size)
    trained_at = {name: _text(as_size(size)) for name, size in trained.sizes.items()}
    if trained_at.get(domain, size) != size:
        yield f"{trained.name}: size {size}, trained at {trained_at[domain]}"
    if trained.precision not in (None, predictor.precision):
        yield f"{trained.name}: precision {predictor.precision}, trained in {trained.precision}"
    actual = domain_of(trained.shards, trained.data_sets, shards)
    by_name = actual == domain == "source" and shards.fingerprint() != trained.shards.get("source")
    if by_name and (trained_at.get("source") != trained_at.get("target") or trained.keeps == "per_domain"):
        yield (
            f"{trained.name}: these pictures are taken for the source's, by the name of their data set; domain=target "
            f"would take the target's statistics and size, {trained_at.get('target', _text(None))}"
        )
    if trained.keeps == "per_domain" and actual != domain:
        yield f"{trained.name}: batch-norm statistics of the {domain}, though these pictures are of the {actual}"
    if trained.keeps == "target" and actual == "source":
        yield (
            f"{trained.name}: batch-norm statistics of the target, which are all that a file of weights holds, though "
            "these pictures are of the source; its run has both"
        )


def print_plan(title: str, shards: ShardReader, ensemble: Sequence[Predictor], more: Mapping[str, str]) -> None:
    """Print what is about to be done, with the facts in `more`, and every difference from the training."""
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
    own = "" if predictor.size is not None or packed is None else f", {_text(packed)}"
    as_trained = predictor.domain in sizes and as_size(sizes[predictor.domain]) == predictor.size
    return _text(predictor.size) + own + (f", as the {predictor.domain} in training" if as_trained else "")


def _statistics(predictor: Predictor) -> str:
    return "of both domains together" if predictor.trained.keeps == "shared" else f"of the {predictor.statistics}"
