"""A trained network and how it predicts: whose statistics it takes, at which size of pictures, in which precision."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from esl_dist.config import Domain
from esl_dist.data.images import Size
from esl_dist.data.shards import ShardReader
from esl_dist.errors import UserError
from esl_dist.ranks.precision import convolutions
from esl_dist.runs.trained import TrainedNetwork

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["no", "tf32", "bf16", "fp16"]


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

    def logits(self, images: Tensor) -> Tensor:
        """Return logits, float32 at the network's resolution; whoever has results of them asks whether all are finite.

        Asked here, every picture would wait for the device.

        Raises:
            UserError: the network does not take pictures of this size.
        """
        # Not called but for its pass itself: where passes in training are compiled, these are not worth it.
        with autocast(self.precision, images.device):
            try:
                logits: Tensor = self.trained.network.forward(images, self.domain)["main"]
            except (AssertionError, RuntimeError, ValueError):
                height, width = images.shape[2:]
                self.trained.network.refuse_size((width, height), len(images), self.trained.name, "size of pictures")
                raise
        return logits.float()

    def not_finite(self, where: str) -> UserError:
        """Return the message about logits of the sample `where` that are not all finite.

        Of such scores the highest would be the same class everywhere.
        """
        remedy = "its weights may be damaged" if self.precision == "no" else "choose precision=no"
        return UserError(f"{where}: the network's scores are not finite in precision {self.precision}; {remedy}")


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Be the context of forward passes in a precision, the same as in training."""
    with convolutions(precision), torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES):
        yield


def domain_of(fingerprints: Mapping[str, str], data_sets: Mapping[str, str], shards: ShardReader) -> Domain:
    """Return the domain whose pictures `shards` hold: the source if they, or their data set, are that of the training.

    Args:
        fingerprints: domain → fingerprint of its shards in training, as far as known.
        data_sets: domain → name of its data set, as far as known.
        shards: the pictures.
    """
    fingerprint = shards.fingerprint() if fingerprints else ""
    if fingerprint == fingerprints.get("target"):
        return "target"
    name = shards.index.dataset
    by_name = data_sets.get("source") == name != data_sets.get("target", name)
    return "source" if by_name or fingerprint == fingerprints.get("source") else "target"
