"""Pictures of one's own labelled by a trained network: from the settings to the files, and what is told of them.

The ranks share the pictures that are still to do; each is predicted alone, on one of them, so that neither their number
nor a stop shows in a file. A file is whole or absent, and what is there is not made again: a job that was killed goes
on with the rest. What cannot be read, or is no clear picture, is told of and left out, and the job ends as a user's
mistake when all others are done.
"""

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esl_dist.config import Predict
from esl_dist.data.images import as_size, fitted_size, padded, resize_image
from esl_dist.data.loading import network_input
from esl_dist.data.own_pictures import OwnPictures, find_pictures, is_video
from esl_dist.data.sampling import Wanted, as_they_are
from esl_dist.data.source_files import first_few
from esl_dist.data.videos import Video, frames_decoded, frames_said
from esl_dist.data.workers import Fields, Sample, Workers, read_ahead
from esl_dist.early import line_end
from esl_dist.errors import CorruptSampleError, UserError
from esl_dist.files import whole_file
from esl_dist.inference.inputs import differences_of_sight, facts_of_networks, note_on_raw_ids, open_conditions
from esl_dist.inference.prediction_files import SCORES, Encode, Predicted, encoder_of
from esl_dist.inference.prediction_records import made_with, open_output
from esl_dist.prediction.background import in_background, on_host
from esl_dist.prediction.predictions import grey_scores, most_likely, own_part, predicted_at, shown
from esl_dist.prediction.predictor import Predictor
from esl_dist.prediction.windows import Sight, averaged_logits
from esl_dist.ranks.collectives import (
    broadcast_flags,
    is_main,
    note_progress,
    print_on_main,
    require_same_on_ranks,
    sum_over_ranks,
    warn,
)
from esl_dist.reporting.accounts import account, duration
from esl_dist.reporting.progress import progress
from esl_dist.runs.folder_lock import lock_folder
from esl_dist.stop_signals import keep_end

PROBLEM = "problem"
"""Field of a picture that is left out: what is wrong with it, as bytes."""

ToDo = Mapping[int, Sequence[str]]
"""Position of a picture → the kinds of files that are still to be made of it."""


@dataclass(frozen=True)
class PredictionJob:
    """What every part of a job needs.

    Attributes:
        pictures: all of them.
        predictor: the network and how it predicts.
        sight: windows and mirror images.
        keep_aspect_ratio: whether pictures are padded, not stretched, to the size at which they are seen.
        encode: kind of file → what makes its bytes.
        output: the folder that holds a folder for each kind.
    """

    pictures: OwnPictures
    predictor: Predictor
    sight: Sight
    keep_aspect_ratio: bool
    encode: Mapping[str, Encode]
    output: Path

    def file(self, kind: str, position: int) -> Path:
        """Return where a file of a picture lies."""
        return self.output / kind / f"{self.pictures.names[position]}.png"


def predict(config: Predict, device: torch.device) -> None:
    """Label pictures on the ranks that have joined.

    Raises:
        UserError: a setting cannot be; or some pictures were left out, and all others are done.
    """
    began = time.monotonic()
    pictures = open_pictures(config.pictures, config.largest_megapixels)
    require_same_on_ranks("\n".join(pictures.names), "pictures")
    conditions = open_conditions(config, device)
    predictor = conditions.load(config.checkpoint)
    classes = conditions.named_classes(predictor.trained) or predictor.trained.classes
    sight = Sight(as_size(config.window), config.overlap, config.mirror)
    encode = {kind: encoder_of(kind, classes) for kind in config.save}
    job = PredictionJob(pictures, predictor, sight, config.keep_aspect_ratio, encode, Path(config.output))
    _print_plan(config, job)
    lock_folder(job.output, "output")
    open_output(job.output, made_with(config, predictor, classes), list(encode))
    todo = missing_files(job)
    workers = min(config.workers, pictures.most_readers or config.workers)
    left_out = write_predictions(job, todo, Workers(workers, config.timeout_minutes, progress=note_progress))
    keep_end()
    facts = _done(job, len(todo) - len(left_out), len(pictures.names) - len(todo))
    print_on_main(account(f"done in {duration(time.monotonic() - began)}", facts))
    if left_out:
        names = first_few([pictures.where(position) for position in left_out])
        raise UserError(
            f"{len(left_out)} of {len(pictures.names)} pictures left out: {names}; the warnings above say why; mend "
            "them or take them away, and start again"
        )


def _done(job: PredictionJob, predicted: int, before: int) -> dict[str, str]:
    return {
        "pictures": f"{predicted} predicted" + (f", {before} were there already" if before else ""),
        "predictions": f"{job.output}: {', '.join(job.encode)}",
        "next": "" if "overlay" in job.encode else "save=[overlay] shows classes and pictures together",
    }


def open_pictures(place: str, largest_megapixels: int) -> OwnPictures:
    """Return the pictures, or the frames of a video, that the setting `pictures` names; the main rank tells of them.

    Raises:
        UserError: there is none, or they are not clear (`find_pictures`).
    """
    if is_video(place):
        path = Path(place)
        said = frames_said(path)
        frames = frames_decoded(path)
        found = 0
        for _ in progress(frames, said, "counting", "frame") if is_main() else frames:
            found += 1
            note_progress()
        if found == 0:
            raise UserError(f"pictures={place}: no frame of it can be decoded; expected a video")
        if found < said:
            warn(f"{place}: says that it has {said} frames; {found} can be decoded, and are predicted")
        return Video(path, found, note_progress)
    files = find_pictures(place, largest_megapixels * 10**6)
    if files.passed_over:
        print_on_main(
            f"{place}: passed over, as no pictures or hidden: {len(files.passed_over)} ({first_few(files.passed_over)})"
        )
    return files


def _print_plan(config: Predict, job: PredictionJob) -> None:
    window, sight = job.sight.window, "mirror images, averaged" if config.mirror else ""
    if window is not None:
        sight = f"windows of {window[0]}×{window[1]}, {config.overlap:g} over the next" + (sight and f"; {sight}")
    facts = {
        "pictures": f"{config.pictures}: {len(job.pictures.names)} in all",
        **facts_of_networks([job.predictor], None),
        **({"size": "that of each picture"} if job.predictor.size is None else {}),
        "passes": sight,
        "output": f"{config.output}: {', '.join(job.encode)}",
    }
    print_on_main(account("predicting", facts))
    for line in differences_of_sight(job.predictor, None):
        print_on_main(f"note: {line}")
    if "raw_ids" in config.save and config.classes_from is None and (note := note_on_raw_ids(job.predictor.trained)):
        print_on_main(note)
    if job.predictor.size is None and not config.as_packed:
        print_on_main(
            f"note: {job.predictor.trained.name}: at which size its training saw pictures is not known, or not one; "
            "these are seen at their own; give the run in place of its weights, or size=[width,height]"
        )
    seen_at = job.predictor.size
    if window is not None and seen_at is not None and window[0] >= seen_at[0] and window[1] >= seen_at[1]:
        print_on_main(
            f"note: a window of {window[0]}×{window[1]} covers all of {seen_at[0]}×{seen_at[1]}, at which pictures are "
            "seen; give a smaller one, or size=[width,height] or as_packed=true for larger pictures"
        )


def missing_files(job: PredictionJob) -> dict[int, list[str]]:
    """Return which kinds of files are still to be made of which pictures; the same on every rank."""
    every = [(position, kind) for position in range(len(job.pictures.names)) for kind in job.encode]
    there = broadcast_flags([is_main() and job.file(kind, position).is_file() for position, kind in every])
    todo: dict[int, list[str]] = {}
    for (position, kind), is_there in zip(every, there, strict=True):
        if not is_there:
            todo.setdefault(position, []).append(kind)
    return todo


def write_predictions(job: PredictionJob, todo: ToDo, workers: Workers) -> list[int]:
    """Predict this rank's part of the pictures, and write their files; returns when every rank has written its own.

    Returns:
        the pictures that some rank has left out, with a warning: they alone cannot be read, or are not clear.

    Raises:
        UserError: a picture cannot be read at all or is too small for the network, or its scores are not finite.
    """
    left_out = torch.zeros(len(job.pictures.names), dtype=torch.int64)
    with closing(_writing(job, todo, workers, left_out)) as tasks, closing(in_background(tasks)) as written:
        for _ in written:
            pass
    together: list[int] = sum_over_ranks(left_out, "the end of the predictions").nonzero()[:, 0].tolist()
    return together


@torch.inference_mode()
def _writing(job: PredictionJob, todo: ToDo, workers: Workers, left_out: Tensor) -> Generator[Callable[[], None]]:
    """Yield, for each picture, a function that writes its files; the network's part is done, or queued on a GPU.

    Those that cannot be read, or are not clear, are told of and counted in `left_out`.
    """
    own, device = own_part(sorted(todo)), job.predictor.device

    def read(wanted: Wanted) -> Sample:
        try:
            return seen(job, wanted.position, "overlay" in todo[wanted.position])
        except CorruptSampleError as error:
            words = torch.tensor(list(str(error).encode("utf-8", "replace")), dtype=torch.uint8)
            return {"positions": torch.tensor(wanted.position), PROBLEM: words}

    positions = as_they_are([position] for position in own)
    with closing(read_ahead(read, positions, workers, job.pictures, device.type == "cuda")) as batches:
        for batch in shown(batches, len(own), "predicting"):
            position = int(batch["positions"][0])
            if PROBLEM in batch:
                left_out[position] = 1
                # By the rank that saw it: what ranks tell each other is short.
                words = bytes(batch[PROBLEM][0].tolist()).decode()
                print(f"{line_end()}warning: left out: {words}", file=sys.stderr, flush=True)
            else:
                yield _written(job, batch, todo[position])


def seen(job: PredictionJob, position: int, is_kept: bool) -> Sample:
    """Read a picture as the network sees it, and as it is (`own`) where that is kept."""
    own = job.pictures.pixels(position)
    own_size = (own.shape[1], own.shape[0])
    frame = job.predictor.size or own_size
    size = fitted_size(own_size, frame) if job.keep_aspect_ratio else frame
    sample = {
        "pictures": torch.from_numpy(padded(resize_image(own, size), frame, 0)),
        "positions": torch.tensor(position),
        "own_sizes": torch.tensor(own_size),
    }
    return {**sample, "own": torch.from_numpy(own)} if is_kept else sample


def _written(job: PredictionJob, batch: Fields, kinds: Sequence[str]) -> Callable[[], None]:
    device, position = job.predictor.device, int(batch["positions"][0])
    width, height = batch["own_sizes"][0].tolist()
    pictures = batch["pictures"]
    frame = predicted_at((width, height), (pictures.shape[2], pictures.shape[1]), job.keep_aspect_ratio)
    logits = _logits(job, network_input(pictures.to(device, non_blocking=True)), position)
    scores = [kind for kind in SCORES if kind in kinds]

    def compute() -> tuple[Tensor, ...]:
        maps = [most_likely(logits, frame), *grey_scores(logits, frame, scores)]
        return logits.isfinite().all(), *(one[0, :height, :width] for one in maps)

    computed = on_host(compute, device)

    def write() -> None:
        is_finite, labels, *greys = computed()
        if not is_finite:
            raise job.predictor.not_finite(job.pictures.where(position))
        own = batch["own"][0].numpy() if "own" in batch else None
        by_kind: dict[str, np.ndarray] = {kind: grey.numpy() for kind, grey in zip(scores, greys, strict=True)}
        predicted = Predicted(labels.numpy(), own, by_kind)
        for kind in kinds:
            with whole_file(job.file(kind, position)) as opened:
                opened.write(job.encode[kind](predicted))

    return write


def _logits(job: PredictionJob, images: Tensor, position: int) -> Tensor:
    def score(seen: Tensor) -> Tensor:
        # Of a large picture there may be thousands of windows.
        note_progress()
        return job.predictor.logits(seen)

    try:
        return averaged_logits(score, images, job.sight)
    except UserError as error:
        # Pictures seen at their own size may be too small for a layer.
        raise UserError(f"{job.pictures.where(position)}: {error}, by size=[width,height]") from error
