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

Config = TypeVar("Config", settings.Evaluate, settings.PseudoLabel, settings.Predict)


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
class Conditions:
    """How networks are to see pictures.

    Attributes:
        class_sets: those of the setting `classes_from`, or else of the shards.
        device: where networks compute.
        size: the setting of the pictures' width and height; null: those of the training.
        asked: the other settings: `as_packed`, `domain` and `precision`, where null is those of the training.
    """

    class_sets: dict[str, ClassSet]
    device: torch.device
    size: list[int] | None
    asked: settings.Prediction

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
            UserError: statistics of the source that the network does not have, a size that it does not take, or fp16
                asked for on CPU.
        """
        asked = self.asked
        domain = cast(Domain, asked.domain or self.own_domain(trained))
        if asked.domain is not None:
            refuse_missing_statistics(trained, asked.domain)
        size = None if asked.as_packed else as_size(self.size) or self.usual_size(trained, domain)
        precision = asked.precision or trained.precision or "no"
        if (problem := missing(precision, self.device)) is not None:
            if asked.precision is not None:
                raise UserError(f"precision={asked.precision} {problem}")
            precision = "no"
        self.refuse_size(trained, size)
        return Predictor(trained, domain, size, cast(Precision, precision))

    def own_domain(self, trained: TrainedNetwork) -> Domain:
        """Return the domain that the pictures are of, for this network."""
        raise NotImplementedError

    def usual_size(self, trained: TrainedNetwork, domain: Domain) -> Size | None:
        """Return the size at which this network sees the pictures where none is asked for; None: at their own."""
        raise NotImplementedError

    def refuse_size(self, trained: TrainedNetwork, size: Size | None) -> None:
        """Make sure that a network takes pictures of the size at which it is to see them; None: of their own.

        Raises:
            UserError: it does not; the message names the setting that may change it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Inputs(Conditions):
    """Pictures in shards, and how networks are to see them.

    Attributes:
        shards: the pictures.
        cache: where shards from far away are kept.
    """

    shards: ShardReader
    cache: Cache | None = None

    def own_domain(self, trained: TrainedNetwork) -> Domain:
        """Return the source if the shards, or their data set, are the training's source."""
        return domain_of(trained.shards, trained.data_sets, self.shards)

    def usual_size(self, trained: TrainedNetwork, domain: Domain) -> Size | None:
        """Return that of the training; where it took pictures as they were packed, these are, too."""
        return as_size(trained.sizes.get(domain))

    def refuse_size(self, trained: TrainedNetwork, size: Size | None) -> None:
        """Make sure that a network takes pictures of that size, or of the one that all are packed at."""
        if (seen := size or self.shards.index.image_size) is not None:
            key = "target.size" if isinstance(self.asked, settings.PseudoLabel) else "data.size"
            trained.network.refuse_size(seen, 1, trained.name, key)


@dataclass(frozen=True)
class OwnConditions(Conditions):
    """How networks are to see pictures that lie in no shards; `window`: what is seen at once of each, None: all."""

    window: Size | None

    def own_domain(self, trained: TrainedNetwork) -> Domain:
        """Return the target: for what is not known to be of the source, a network was adapted."""
        return "target"

    def usual_size(self, trained: TrainedNetwork, domain: Domain) -> Size | None:
        """Return that of the training's pictures, be it the one at which they were packed."""
        return trained.seen_at(domain)

    def refuse_size(self, trained: TrainedNetwork, size: Size | None) -> None:
        """Make sure that a network takes pictures of that size, or windows of them."""
        if size is not None:
            seen = size if self.window is None else (min(size[0], self.window[0]), min(size[1], self.window[1]))
            trained.network.refuse_size(seen, 1, trained.name, "size" if self.window is None else "window")


def named_network(
    path: str | Path,
    class_sets: dict[str, ClassSet],
    asked: settings.Prediction | settings.Export,
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


def note_on_raw_ids(trained: TrainedNetwork) -> str:
    """Say whose raw ids a network's own classes have where its target's data set is another; "": nothing to tell."""
    source, target = (trained.data_sets.get(domain) for domain in ("source", "target"))
    if source is None or target in (None, source):
        return ""
    return (
        f"note: {trained.name}: raw ids are those of {source}, its source; for those of {target}, its target, give its "
        "description, or labelled shards of it, as classes_from=…"
    )


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
    cache = _begin(asked)
    shards = open_shards(pictures.path, cache=cache)
    require_same_on_ranks(shards.fingerprint(), "shards")
    class_sets = shards.index.class_sets if asked.classes_from is None else read_class_sets(asked.classes_from, cache)
    return Inputs(class_sets, device, pictures.size, asked, shards, cache)


def open_conditions(asked: settings.Predict, device: torch.device) -> Conditions:
    """Return the conditions of pictures that lie in no shards.

    Raises:
        UserError: the place of `classes_from` cannot be read.
    """
    cache = _begin(asked)
    class_sets = {} if asked.classes_from is None else read_class_sets(asked.classes_from, cache)
    return OwnConditions(class_sets, device, asked.size, asked, as_size(asked.window))


def _begin(asked: settings.Prediction) -> Cache:
    # A convolution adds in another order on another number of threads: the number of ranks must not change a bit. And
    # what is made of predictions has threads of its own.
    torch.set_num_threads(1)
    return cache_of(asked.cache.folder, asked.cache.gigabytes, asked.timeout_minutes, note_progress)


def with_common_size(ensemble: Sequence[Predictor]) -> list[Predictor]:
    """Let networks of whose training nothing is known see pictures at the one size of the others, if there is one."""
    sizes = {one.size for one in ensemble if one.domain in one.trained.sizes}
    return [replace(one, size=next(iter(sizes))) for one in ensemble] if len(sizes) == 1 else list(ensemble)


def _text(size: Size | None) -> str:
    return "as packed" if size is None else f"{size[0]}×{size[1]}"


def _seen(predictor: Predictor, packed: Size | None) -> str:
    own = "" if predictor.size is not None or packed is None else f", {_text(packed)}"
    return _text(predictor.size) + own


def differences(predictor: Predictor, shards: ShardReader) -> Iterator[str]:
    """Yield one line for each condition that is another than that of the training."""
    trained, domain = predictor.trained, predictor.domain
    yield from differences_of_sight(predictor, shards.index.image_size)
    actual = domain_of(trained.shards, trained.data_sets, shards)
    by_name = actual == domain == "source" and shards.fingerprint() != trained.shards.get("source")
    trained_at = {name: _text(as_size(size)) for name, size in trained.sizes.items()}
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


def is_as_trained(predictor: Predictor, packed: Size | None) -> bool:
    """Say whether pictures, which are packed at one size or not, are seen at that of the training, as far as known."""
    trained, domain = predictor.trained, predictor.domain
    trained_at = trained.seen_at(domain)
    if trained_at is None:
        return domain in trained.sizes and predictor.size is None
    return (predictor.size or packed) == trained_at


def differences_of_sight(predictor: Predictor, packed: Size | None) -> Iterator[str]:
    """Yield one line if the size, and one if the precision, is another than that of the training.

    Args:
        predictor: see `Predictor`.
        packed: width and height of all pictures as they lie in shards; None: they have several, or lie in none.
    """
    trained, size = predictor.trained, _seen(predictor, packed)
    if predictor.domain in trained.sizes and not is_as_trained(predictor, packed):
        yield f"{trained.name}: size {size}, trained at {_text(trained.seen_at(predictor.domain))}"
    if trained.precision not in (None, predictor.precision):
        yield f"{trained.name}: precision {predictor.precision}, trained in {trained.precision}"


def print_plan(title: str, shards: ShardReader, ensemble: Sequence[Predictor], more: Mapping[str, str]) -> None:
    """Print what is about to be done, with the facts in `more`, and every difference from the training."""
    pictures = f"{shards.folder}: {shards.index.dataset} {shards.index.split}, {len(shards)} samples"
    facts = {"pictures": pictures, **facts_of_networks(ensemble, shards.index.image_size), **more}
    print_on_main(account(title, facts))
    for line in dict.fromkeys(line for one in ensemble for line in differences(one, shards)):
        print_on_main(f"note: {line}")


def facts_of_networks(ensemble: Sequence[Predictor], packed: Size | None) -> dict[str, str]:
    """Return networks and their conditions as an account tells them; `packed` is the one size of pictures as packed."""
    first = ensemble[0].trained
    return {
        "network": " + ".join(f"{one.title}, {one.trained.architecture}" for one in ensemble),
        "classes": f"{first.class_set}, {len(first.classes)} classes",
        "size": " + ".join(dict.fromkeys(_size(one, packed) for one in ensemble)),
        "statistics": " + ".join(dict.fromkeys(map(_statistics, ensemble))),
        "precision": " + ".join(dict.fromkeys(one.precision for one in ensemble)),
        "device": f"{world_size()} process{'es' if world_size() > 1 else ''} on {ensemble[0].device.type}",
    }


def _size(predictor: Predictor, packed: Size | None) -> str:
    as_trained = f", as the {predictor.domain} in training" if is_as_trained(predictor, packed) else ""
    return _seen(predictor, packed) + as_trained


def _statistics(predictor: Predictor) -> str:
    return "of both domains together" if predictor.trained.keeps == "shared" else f"of the {predictor.statistics}"
