"""Rows of pictures of the same few samples, as the network sees them while it learns; on the main rank.

They are read as evaluation would read them, whole. Which they are depends on the shards alone, so that a row shows the
same sample at every step, whatever the ranks and restarts. Networks are as before when a row is made.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from esl_dist.adaptation.passes import SEGMENTATION, MicroBatch, Normaliser, Precision, Step
from esl_dist.config import Domain
from esl_dist.data.labels import IGNORE_INDEX
from esl_dist.data.loading import Batch, HostBatch, Samples, on_device
from esl_dist.data.sampling import evenly
from esl_dist.errors import UserError, memory_words
from esl_dist.models.segmentation import SegmentationNetwork, in_evaluation
from esl_dist.prediction.predictor import domain_of
from esl_dist.ranks.collectives import note_progress, warn
from esl_dist.reporting.pictures import (
    GROUND_TRUTH,
    IMAGE,
    PSEUDO_LABEL,
    Picture,
    class_colors,
    natural_colors,
    predicted_pictures,
    row,
)
from esl_dist.training.setup import Training


@dataclass(frozen=True)
class Shown:
    """Samples that are shown.

    Attributes:
        group: of their pictures.
        domain: whose batch-norm statistics a network takes for them.
        samples: of which some are shown.
        batches: those, by key; read when they are first drawn.
    """

    group: str
    domain: Domain
    samples: Samples
    batches: dict[str, HostBatch] = field(default_factory=dict)


class Drawing:
    """Draws what a training shows: samples of both domains and, where they have labels, of its validations."""

    def __init__(self, training: Training) -> None:
        """Choose what is shown; nothing is read yet."""
        data, validation = training.data, training.validation
        self._training = training
        self._shown = [Shown("source", "source", data.source)]
        if data.target is not None:
            self._shown.append(Shown("target", "target", data.target))
        if validation is not None and validation.labels is not None:
            domain = domain_of(data.fingerprints, data.data_sets(), validation.images)
            self._shown.append(Shown("validation", domain, validation))
        self._is_read = False

    def rows(self) -> Iterator[tuple[str, dict[str, Picture]]]:
        """Yield each group and its rows, by the samples' keys."""
        with in_evaluation(self._training.state.networks):
            self._read()
            for shown in self._shown:
                yield shown.group, dict(self._rows(shown))

    def _rows(self, shown: Shown) -> Iterator[tuple[str, Picture]]:
        """Yield the rows of a group by their keys; a whole picture may take more memory than its parts."""
        for key, batch in list(shown.batches.items()):
            try:
                yield key, self._row(shown, batch)
            except (RuntimeError, MemoryError) as error:
                if (words := memory_words(error)) is None:
                    raise
                # What is for show alone ends no training.
                warn(f"{words}; {shown.group} {key} is not shown")
                del shown.batches[key]

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        network = self._training.state.networks[SEGMENTATION]
        assert isinstance(network, SegmentationNetwork)
        for shown in self._shown:
            for position in evenly(len(shown.samples), self._training.config.pictures_of):
                try:
                    sample = {name: value[None] for name, value in shown.samples[position].items()}
                    height, width = sample["pictures"].shape[1:3]
                    # Whole, as a training on parts of pictures never sees it.
                    network.refuse_size((width, height), 1, shown.samples.images.where(position), "size")
                except UserError as error:
                    # It ends the training where it is to be learned, not where it is to be shown.
                    warn(f"{error}; it is not shown")
                    continue
                key = shown.samples.images.key(int(sample["positions"]))
                shown.batches[key] = HostBatch(**{"labels": None, "label_sizes": None, **sample})  # type: ignore[typeddict-item]
                note_progress()

    @torch.no_grad()
    def _row(self, shown: Shown, host: HostBatch) -> Picture:
        training = self._training
        network, classes = training.state.networks[SEGMENTATION], training.data.classes
        assert isinstance(network, SegmentationNetwork)
        batch = on_device(host, training.ranks.device)
        panels = {IMAGE: natural_colors(batch["images"][0])}
        if shown.group != "target" and batch["labels"] is not None:
            panels[GROUND_TRUTH] = class_colors(batch["labels"][0], classes)
        panels |= predicted_pictures(network, batch["images"], shown.domain, classes)
        if shown.group == "target":
            panels |= self._taught(batch)
        note_progress()
        return row(panels, classes)

    def _taught(self, batch: Batch) -> dict[str, Picture]:
        """Return the panel of what the network would learn of a target sample, as far as it would."""
        training = self._training
        micro_batch = MicroBatch(batch, batch, int(training.config.seed or 0), 0, range(1))
        precision = Precision(training.ranks.autocast, _no_backward)
        normaliser = Normaliser(torch.ones(2, dtype=torch.int64), 1)
        step = Step(training.state.networks, micro_batch, normaliser, training.config.method, precision)
        # Where passes in training are compiled, this one of a picture is not worth it.
        plain = torch.compiler.set_stance("force_eager") if training.config.compile else nullcontext()
        with plain:
            taught = training.method.taught(step)
        if taught is None:
            return {}
        weights = taught.weights[0].cpu()
        labels = torch.where(weights > 0, taught.labels[0].cpu().long(), IGNORE_INDEX)
        weight = float(weights.sum() / (weights > 0).sum().clamp(min=1))
        title = PSEUDO_LABEL if weight in (0, 1) else f"{PSEUDO_LABEL}, weight {weight:.2f}"
        return {title: class_colors(labels, training.data.classes)}


def _no_backward(loss: Tensor, network: str) -> None:
    raise AssertionError("nothing is learned of what is shown")
