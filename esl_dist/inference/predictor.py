"""A network and the conditions under which it predicts: whose pictures it sees, at which size, in which precision.

They are those of its training unless others are asked for; what differs is said, for it costs points without a sign.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from esl_dist import config as settings
from esl_dist.data.images import Size, as_size
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.models.batch_norm import Domain
from esl_dist.runs.load import TrainedNetwork

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Predictor:
    """A trained network, and how it predicts.

    Attributes:
        trained: the network, in evaluation mode, and where it comes from.
        domain: whose size and, where there are statistics per domain, whose batch-norm statistics it takes.
        size: width and height of its input; None: as packed.
        precision: of its forward passes.
        weight: factor on its logits in an ensemble.
    """

    trained: TrainedNetwork
    domain: Domain = "target"
    size: Size | None = None
    precision: Precision = "no"
    weight: float = 1.0

    @property
    def title(self) -> str:
        """Name and step, as in tables."""
        return self.trained.name if self.trained.step is None else f"{self.trained.name} ({self.trained.step})"

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.trained.network.parameters()).device

    @property
    def statistics(self) -> Domain:
        """Whose batch-norm statistics results depend on; the target's where there is one set."""
        return self.domain if self.trained.keeps == "per_domain" else "target"

    def logits(self, images: Tensor, where: str) -> Tensor:
        """Return logits, float32 at the network's resolution, for the sample that messages call `where`.

        Raises:
            UserError: they are not all finite: of such scores the highest would be the same class everywhere.
        """
        with autocast(self.precision, images.device):
            logits: Tensor = self.trained.network(images, self.domain)["main"].float()
        if not logits.isfinite().all():
            remedy = "its weights may be damaged" if self.precision == "no" else "choose precision=no"
            raise UserError(
                f"{where}: the network's scores are no finite numbers in precision {self.precision}; {remedy}"
            )
        return logits


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of forward passes in a precision, as training has it."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


def predictor_for(
    trained: TrainedNetwork,
    shards: ShardReader,
    given_size: list[int] | None,
    asked: settings.Evaluate | settings.PseudoLabel,
) -> Predictor:
    """Return a network with the conditions under which it sees pictures.

    Args:
        trained: the network.
        shards: the pictures.
        given_size: the setting of their width and height; null: those of the training.
        asked: `as_packed`, `domain` and `precision`; null: those of the training.

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
    predictor = Predictor(trained, domain, size, cast(Precision, asked.precision or trained.precision or "no"))
    if _is_possible(predictor.precision, predictor.device):
        return predictor
    if asked.precision is not None:
        raise UserError(f"precision={asked.precision} needs a GPU; on CPU choose no or bf16")
    return replace(predictor, precision="no")


def _is_possible(precision: str, device: torch.device) -> bool:
    if device.type == "cpu":
        return precision != "fp16"
    return precision != "bf16" or device.type != "cuda" or torch.cuda.is_bf16_supported()


def domain_of(trained: TrainedNetwork, shards: ShardReader) -> Domain:
    """Return the domain whose pictures `shards` hold: the source if it was trained on them or on their data set."""
    fingerprint = shards.fingerprint() if trained.shards else ""
    if fingerprint == trained.shards.get("target"):
        return "target"
    name, names = shards.index.dataset, trained.data_sets
    by_name = names.get("source") == name != names.get("target", name)
    return "source" if by_name or fingerprint == trained.shards.get("source") else "target"


def with_common_size(ensemble: Sequence[Predictor]) -> list[Predictor]:
    """Let networks of whose training nothing is known see pictures at the one size of the others, if there is one."""
    sizes = {one.size for one in ensemble if one.domain in one.trained.sizes}
    return [replace(one, size=next(iter(sizes))) for one in ensemble] if len(sizes) == 1 else list(ensemble)


def size_text(size: Size | None) -> str:
    """Write a size as messages do."""
    return "as packed" if size is None else f"{size[0]}×{size[1]}"


def differences(predictor: Predictor, shards: ShardReader) -> Iterator[str]:
    """Yield one line for each condition that is another than that of the training."""
    trained, domain, size = predictor.trained, predictor.domain, size_text(predictor.size)
    trained_at = {name: size_text(as_size(size)) for name, size in trained.sizes.items()}
    if trained_at.get(domain, size) != size:
        yield f"{trained.name}: size {size}, trained at {trained_at[domain]}"
    if trained.precision not in (None, predictor.precision):
        yield f"{trained.name}: precision {predictor.precision}, trained in {trained.precision}"
    actual = domain_of(trained, shards)
    by_name = actual == domain == "source" and shards.fingerprint() != trained.shards.get("source")
    if by_name and (trained_at.get("source") != trained_at.get("target") or trained.keeps == "per_domain"):
        yield (
            f"{trained.name}: these pictures are taken for the source's, by the name of their data set; domain=target "
            f"would take the target's statistics and size, {trained_at.get('target', size_text(None))}"
        )
    if trained.keeps == "per_domain" and actual != domain:
        yield f"{trained.name}: batch-norm statistics of the {domain}, though these pictures are of the {actual}"
    if trained.keeps == "target" and actual == "source":
        yield (
            f"{trained.name}: batch-norm statistics of the target, which are all that a file of weights holds, though "
            "these pictures are of the source; its run has both"
        )
