"""The conditions under which a network predicts: whose pictures it sees, at which size, in which precision.

They are those of its training unless others are asked for; what differs is said, for it costs points without a sign.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from esl_dist import config as settings
from esl_dist.data.images import Size, as_size
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.models.batch_norm import Domain
from esl_dist.runs.load import TrainedNetwork

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Conditions:
    """How a network sees pictures.

    Attributes:
        domain: whose size and, where there are statistics per domain, whose batch-norm statistics.
        size: width and height of its input; None: as packed.
        precision: of its forward passes.
    """

    domain: Domain
    size: Size | None
    precision: Precision


def asked_precision(setting: str | None, launched: str) -> str | None:
    """Return the precision that the setting or the launcher asks for; None if neither does.

    A launcher says no also where it was asked for nothing.
    """
    return setting or (None if launched == "no" else launched)


def conditions_for(
    trained: TrainedNetwork,
    shards: ShardReader,
    given_size: list[int] | None,
    asked: settings.Evaluate | settings.PseudoLabel,
    device: torch.device,
) -> Conditions:
    """Return the conditions under which a network sees pictures.

    Args:
        trained: the network.
        shards: the pictures.
        given_size: the setting of their width and height; null: those of the training.
        asked: `as_packed`, `domain` and `precision`; null: those of the training.
        device: where it computes.

    Raises:
        UserError: statistics of the source that the network does not have, or fp16 asked for on CPU.
    """
    domain = cast(Domain, asked.domain or domain_of(trained, shards))
    if asked.domain == "source" and trained.keeps == "target":
        raise UserError(
            f"{trained.name}: domain=source is impossible: a file of weights holds the batch-norm statistics of the "
            "target alone; give the run or a checkpoint of it"
        )
    if asked.as_packed and given_size is not None:
        raise UserError(f"as_packed=true contradicts the size {given_size}; leave out one of the two")
    size = None if asked.as_packed else as_size(given_size or trained.sizes.get(domain))
    if asked.precision is not None and not _is_possible(asked.precision, device):
        raise UserError(f"precision={asked.precision} needs a GPU; on CPU choose no or bf16")
    precision = asked.precision or trained.precision or "no"
    possible = cast(Precision, precision if _is_possible(precision, device) else "no")
    return Conditions(domain, size, possible)


def domain_of(trained: TrainedNetwork, shards: ShardReader) -> Domain:
    """Return the domain whose pictures `shards` hold: the source if it was trained on them or on their data set."""
    fingerprint = shards.fingerprint() if trained.shards else ""
    if fingerprint == trained.shards.get("target"):
        return "target"
    if fingerprint == trained.shards.get("source"):
        return "source"
    names = trained.data_sets
    only_source = shards.index.dataset == names.get("source") and shards.index.dataset != names.get("target")
    return "source" if only_source and "target" in names else "target"


def _is_possible(precision: str, device: torch.device) -> bool:
    if device.type == "cpu":
        return precision != "fp16"
    return precision != "bf16" or device.type != "cuda" or torch.cuda.is_bf16_supported()


def differences(trained: TrainedNetwork, conditions: Conditions, shards: ShardReader) -> Iterator[str]:
    """Yield one line for each condition that is another than that of the training."""
    domain = conditions.domain
    if domain in trained.sizes and as_size(trained.sizes[domain]) != conditions.size:
        yield f"{trained.name}: size {_text(conditions.size)}, trained at {_text(as_size(trained.sizes[domain]))}"
    if trained.precision not in (None, conditions.precision):
        yield f"{trained.name}: precision {conditions.precision}, trained in {trained.precision}"
    actual = domain_of(trained, shards)
    by_name = actual == domain == "source" and shards.fingerprint() != trained.shards.get("source")
    if by_name and (trained.sizes.get("source") != trained.sizes.get("target") or trained.keeps == "per_domain"):
        yield (
            f"{trained.name}: these pictures are taken for the source's, by the name of their data set; domain=target "
            f"would take the target's statistics and size, {_text(as_size(trained.sizes.get('target')))}"
        )
    if trained.keeps == "per_domain" and actual != domain:
        yield f"{trained.name}: batch-norm statistics of the {domain}, though these pictures are of the {actual}"
    if trained.keeps == "target" and actual == "source":
        yield (
            f"{trained.name}: batch-norm statistics of the target, which are all that a file of weights holds, though "
            "these pictures are of the source; its run has both"
        )


def statistics_of(trained: TrainedNetwork, conditions: Conditions) -> Domain:
    """Return whose statistics results depend on, as they are kept with them; where there are one, the target's."""
    return conditions.domain if trained.keeps == "per_domain" else "target"


def with_common_size(networks: Sequence[TrainedNetwork], conditions: Sequence[Conditions]) -> list[Conditions]:
    """Let networks of whose training nothing is known see pictures at the one size of the others, if there is one."""
    pairs = list(zip(networks, conditions, strict=True))
    sizes = {how.size for one, how in pairs if how.domain in one.sizes}
    if len(sizes) != 1:
        return list(conditions)
    (size,) = sizes
    return [how if how.domain in one.sizes else replace(how, size=size) for one, how in pairs]


def told_size(trained: TrainedNetwork, conditions: Conditions, shards: ShardReader) -> str:
    """Write the size at which pictures are seen, and whether training saw those of the domain alike."""
    packed, domain = shards.index.image_size, conditions.domain
    own = f", {_text(packed)}" if conditions.size is None and packed is not None else ""
    as_trained = domain in trained.sizes and as_size(trained.sizes[domain]) == conditions.size
    return f"{_text(conditions.size)}{own}" + (f", as the {domain} in training" if as_trained else "")


def told_statistics(trained: TrainedNetwork, conditions: Conditions) -> str:
    """Write whose batch-norm statistics a network predicts with."""
    by_kind = {"shared": "of both domains together", "target": "of the target"}
    return by_kind.get(trained.keeps, f"of the {conditions.domain}")


def _text(size: Size | None) -> str:
    return "as packed" if size is None else f"{size[0]}×{size[1]}"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of forward passes in a precision, as training has it."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)
