"""The network in training, validated as evaluation would score its checkpoint: on all ranks, and without a trace in it.

With labels the figures are IoU and its mean; those without labels are for choosing a snapshot where there are none:
mean normalised entropy, the share of pixels that ESL would keep (arXiv 2006.08658, section 3), and how far a teacher
and its student agree. All are made of counts that add up over ranks, so they are the same bits on any number of them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from esl_dist import config as settings
from esl_dist.adaptation.entropy import HIGHEST_LEVEL, empty_histograms
from esl_dist.adaptation.losses import LEAST_PROBABILITY
from esl_dist.adaptation.passes import SEGMENTATION, Networks
from esl_dist.adaptation.pseudo_labels import TRUST, kept_pixels, label_and_score, thresholds
from esl_dist.adaptation.teacher import TEACHER
from esl_dist.config import Domain
from esl_dist.data.cache import cache_of
from esl_dist.data.images import as_size
from esl_dist.data.labels import class_names
from esl_dist.data.loading import Batch, Samples, label_source
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.data.workers import Workers
from esl_dist.models.segmentation import SegmentationNetwork, in_evaluation
from esl_dist.prediction.background import in_background, on_host
from esl_dist.prediction.levels import Count, counting, without_padding
from esl_dist.prediction.predictions import most_likely, own_part, prediction, read_batches
from esl_dist.prediction.predictor import Precision, Predictor, domain_of
from esl_dist.ranks.collectives import note_place, note_progress, print_on_main, require_same_on_ranks, sum_over_ranks
from esl_dist.reporting.scores import ScoreEntries, scores_of
from esl_dist.runs.trained import Provenance, TrainedNetwork, seen_sizes
from esl_dist.runs.validations import Figures, ValidationRecord, best_before
from esl_dist.training.data import TrainingData
from esl_dist.training.log import TrainingLog
from esl_dist.training.stop_request import StopRequest

ENTROPY_FLOOR = 0.1
"""Least entropy threshold of a class, as ESL publishes it."""


def open_validation(config: settings.Train, data: TrainingData) -> Samples | None:
    """Return the samples of a run's validations; None: it has none.

    Raises:
        UserError: shards that are missing, or whose classes are not those of the training.
    """
    if not config.validate_every:
        return None
    if not config.validation.path:
        assert data.target is not None
        size = as_size(config.validation.size) or data.target.size
        # A run that bears corrupt ones would else end at each of its validations.
        return Samples(data.target.images, size, replace_corrupt=data.target.replace_corrupt)
    cache = cache_of(config.cache.folder, config.cache.gigabytes, config.timeout_minutes, note_progress)
    shards = open_shards(config.validation.path, cache=cache)
    require_same_on_ranks(shards.fingerprint(), "validation shards")
    domain = domain_of(data.fingerprints, data.data_sets(), shards)
    size = as_size(config.validation.size or seen_sizes(config, data.fingerprints)[domain])
    if size is None:
        _tell_other_size(shards, data, domain)
    is_labelled = bool(shards.index.class_sets)
    if not is_labelled:
        print_on_main(
            f"validation.path={config.validation.path}: without labels, so validations give mean entropy, the share of "
            "pixels that ESL keeps and, if there is a teacher, its agreement with the network, but no IoU, and no step "
            "is the best: checkpoints.keep_every=… keeps those to choose from"
        )
    return Samples(shards, size, label_source(shards, data.class_set, data.classes) if is_labelled else None)


def _tell_other_size(shards: ShardReader, data: TrainingData, domain: Domain) -> None:
    """Say so where pictures as they are packed have another size than the training's as they are packed."""
    packed = data.packed_sizes()
    own, trained_at = shards.index.image_size, packed.get(domain if domain in data.fingerprints else "source")
    if own != trained_at:
        packed_at, trained = ("several sizes" if one is None else f"{one[0]}×{one[1]}" for one in (own, trained_at))
        size = "" if trained_at is None else f"; validation.size=[{trained_at[0]},{trained_at[1]}] shows them so"
        print_on_main(
            f"note: validation.path={shards.folder}: pictures are seen as packed, at {packed_at}, those of the "
            f"training at {trained}{size}"
        )


@dataclass(frozen=True)
class Validation:
    """What is validated, and on what.

    Attributes:
        samples: the pictures, with labels at their own size or without any.
        student: the segmentation network, and how it predicts.
        teacher: likewise; None: there is none.
        workers: the processes that read, a rank.
    """

    samples: Samples
    student: Predictor
    teacher: Predictor | None
    workers: Workers

    @property
    def made_with(self) -> dict[str, object]:
        """What figures depend on besides the weights."""
        size = self.samples.size
        return {
            "data": self.samples.images.fingerprint(),
            "size": None if size is None else list(size),
            "domain": self.student.statistics,
            "labels": self.samples.labels is not None,
        }


def validation_of(samples: Samples, networks: Networks, known: Provenance, workers: Workers) -> Validation:
    """Return the validation of networks in training, of which all is `known` that their checkpoint would say."""
    segmentation = networks[SEGMENTATION]
    assert isinstance(segmentation, SegmentationNetwork)
    keeps = "per_domain" if known.per_domain else "shared"
    trained = TrainedNetwork(**vars(known), network=segmentation, name=known.run, keeps=keeps)
    domain = domain_of(known.shards, known.data_sets, samples.images)
    student = Predictor(trained, domain, samples.size, cast(Precision, known.precision))
    teacher = dict(networks.items()).get(TEACHER)
    if not isinstance(teacher, SegmentationNetwork):
        return Validation(samples, student, None, workers)
    # Of the source, whose pictures it never labels, a teacher has no statistics.
    by_teacher = replace(student, trained=replace(trained, network=teacher), domain="target")
    return Validation(samples, student, by_teacher, workers)


@dataclass(frozen=True)
class Finding:
    """What came of a validation.

    Attributes:
        figures: the same on every rank; None: it was cut short, for some rank was asked to stop.
        interrupted: whether with Ctrl-C.
    """

    figures: Figures | None
    interrupted: bool = False


def validate(validation: Validation, place: str, request: StopRequest) -> Finding:
    """Predict all pictures, each on one of the ranks, and count; called on every rank.

    Nothing is drawn, and networks and threads are as before when it returns.

    Args:
        validation: what is validated.
        place: named in messages.
        request: whether this rank was asked to stop, which ends the validation of all.

    Raises:
        UserError: a picture cannot be read, or scores are not finite.
    """
    note_place(place)
    student, networks = validation.student, [validation.student.trained.network]
    networks += [] if validation.teacher is None else [validation.teacher.trained.network]
    names = class_names(student.trained.classes)
    histograms = empty_histograms(len(names), student.device)
    sums = torch.zeros(len(names) ** 2 + 1, dtype=torch.int64)
    with _as_evaluation_computes(networks), closing(in_background(_counted(validation, histograms))) as counted:
        for counts in counted:
            if request.asked:
                break
            sums += counts
    said = torch.tensor([request.asked, request.interrupted], dtype=torch.int64)
    *counts_of_pixels, asked, interrupted = sum_over_ranks(torch.cat([sums, said]), place).tolist()
    if asked:
        return Finding(None, interrupted > 0)
    *confusion, same = counts_of_pixels
    figures = unsupervised_figures(
        sum_over_ranks(histograms.cpu(), place), None if validation.teacher is None else same
    )
    if validation.samples.labels is None:
        return Finding(figures)
    scores = scores_of(torch.tensor(confusion).reshape(len(names), len(names)).numpy(), names)
    return Finding(replace(figures, scores=ScoreEntries(**scores)))


def unsupervised_figures(histograms: Tensor, same: int | None) -> Figures:
    """Return the figures that need no labels.

    Args:
        histograms: levels of normalised entropy by predicted class, int64 (classes, 65536), over all pictures.
        same: pixels of which teacher and student predict the same class; None without a teacher.
    """
    pixels = int(histograms.sum())
    levels = torch.arange(HIGHEST_LEVEL + 1)
    entropy = int((histograms.sum(0) * levels).sum()) / (pixels * HIGHEST_LEVEL)
    trust = TRUST["entropy"]
    kept = sum(kept_pixels(histograms, thresholds(histograms, trust, ENTROPY_FLOOR), trust))
    return Figures(entropy, kept / pixels, None if same is None else same / pixels)


@contextmanager
def _as_evaluation_computes(networks: list[SegmentationNetwork]) -> Iterator[None]:
    """Have networks in evaluation mode, and convolutions in one thread, which add in another order in several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with in_evaluation(torch.nn.ModuleList(networks)):
            yield
    finally:
        torch.set_num_threads(threads)


def _counted(validation: Validation, histograms: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Yield, for each of this rank's pictures, a function that counts its levels and returns what else is counted."""
    samples, count = validation.samples, counting(histograms)
    own = own_part([[position] for position in range(len(samples))])
    for batch in read_batches(samples, own, validation.workers, validation.student.device, "validating"):
        yield _counts(validation, batch, count)


@torch.no_grad()
def _counts(validation: Validation, batch: Batch, count: Count) -> Callable[[], Tensor]:
    """Predict a picture, or queue that on a GPU.

    Returns:
        a function that returns int64 (classes² + 1,), in the host's memory: the confusion matrix, row by row, and the
        pixels of which teacher and student predict the same class.
    """
    samples, student, images = validation.samples, validation.student, batch["images"]
    frame = samples.size or samples.images.index.image_size or (images.shape[3], images.shape[2])
    size, (width, height) = (frame[1], frame[0]), without_padding(samples.images.index, batch, frame)
    logits = [one.logits(images) for one in (student, validation.teacher) if one is not None]
    # What pseudo-labels are is counted at the size of pictures, as that job does it; what has labels, at theirs.
    scored = None if samples.labels is None else prediction([student], samples, batch, logits[:1])

    def compute() -> tuple[Tensor, ...]:
        labels, levels = (one[0, :height, :width] for one in label_and_score(logits[0], size, TRUST["entropy"]))
        count(labels, levels)
        # By the same rule: probabilities are resized, not logits.
        others = [most_likely(F.softmax(one, 1).clamp_(min=LEAST_PROBABILITY), size) for one in logits[1:]]
        same = [(labels == one[0, :height, :width]).sum() for one in others] or [
            labels.new_zeros((), dtype=torch.int64)
        ]
        return same[0], torch.stack([one.isfinite().all() for one in logits]).all()

    computed = on_host(compute, images.device)

    def made() -> Tensor:
        same, is_finite = computed()
        if not is_finite:
            raise student.not_finite(samples.images.where(int(batch["positions"][0])))
        classes = len(student.trained.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.int64) if scored is None else scored().confusion
        return torch.cat([confusion.flatten(), same.reshape(1)])

    return made


class Validator:
    """Validates a run when it is due, and knows its best step; of a run without validations, none ever is.

    What a stop cuts short is done when the run goes on, from the checkpoint that the stop leaves.
    """

    def __init__(
        self, validation: Validation | None, config: settings.Train, run: Path, first_step: int, request: StopRequest
    ) -> None:
        """Go on with what validations up to `first_step` found.

        Args:
            validation: what is validated; None: nothing.
            config: the run's settings.
            run: its folder.
            first_step: steps done before.
            request: whether this rank was asked to stop.

        Raises:
            UserError: the run's file of validations is damaged.
        """
        self._validation, self._config, self._request = validation, config, request
        self._best_before = best_before(run, first_step) if validation is None else None
        self._kept = None if validation is None else ValidationRecord(run, validation.made_with, first_step)

    def is_due(self, step: int) -> bool:
        """Say whether the network is to be validated after `step` steps, and was not yet."""
        if self._kept is None or not step or step in self._kept:
            return False
        return step == self._config.steps or step % self._config.validate_every == 0

    @property
    def best(self) -> tuple[int, Figures] | None:
        """The best step, whose checkpoint stays, and its figures."""
        if self._kept is None or self._kept.best is None:
            return None
        return self._kept.best, self._kept[self._kept.best]

    @property
    def best_step(self) -> int | None:
        """The step alone; of a run that is validated no more, the best of those that were."""
        return self._best_before if self._kept is None else self._kept.best

    def validate(self, step: int, log: TrainingLog) -> Finding:
        """Validate the network after `step` steps, and tell `log` what is found; called on every rank."""
        assert self._validation is not None
        assert self._kept is not None
        began = time.monotonic()
        finding = validate(self._validation, f"the validation after step {step}", self._request)
        log.leave_out(time.monotonic() - began)
        if finding.figures is not None:
            log.write_validation(step, finding.figures, self._kept.is_better(finding.figures))
            self._kept.add(step, finding.figures)
        return finding
