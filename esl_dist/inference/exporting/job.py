"""The story of an export: load a network, make the file, compare it with the network, write it, tell of it.

A file is for pictures of any size, and any number of them at once, unless settings fix them. What a network cannot do
so shows in making the file or in comparing it; then it is made for one size, and a line says so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from esl_dist.config import Domain, Export
from esl_dist.data.class_sets import read_class_sets
from esl_dist.data.images import Size, as_size
from esl_dist.errors import UserError, beginning, memory_words
from esl_dist.files import whole_file
from esl_dist.inference.exporting.deployed import BATCH, HEIGHT, WIDTH, Deployed, Sides, metadata
from esl_dist.inference.exporting.formats import (
    Compute,
    as_onnx,
    as_torch_export,
    by_onnxruntime,
    by_torch,
    followed,
    in_silence,
)
from esl_dist.inference.inputs import named_network, note_on_raw_ids, refuse_missing_statistics
from esl_dist.ranks.collectives import print_on_main
from esl_dist.reporting.accounts import account, duration
from esl_dist.runs.trained import TrainedNetwork

COMPARED_AT = ((1, 161, 97), (3, 96, 128))
"""Batch, height and width of the random pictures with which a file for any is compared: odd and even sides."""
MOST_DIFFERENCE = 1e-3
"""Of the largest score. What is added up in another order differs by some 1e-6 of it."""
SHOWN_CHARACTERS = 200
"""Of what a library says."""


@dataclass(frozen=True)
class Agreement:
    """How far what a file computes of random pictures is what its network does.

    Attributes:
        pixels: that were compared.
        others: how many of them have another highest class.
        difference: the largest between two scores.
        score: the largest of the network's.
    """

    pixels: int
    others: int
    difference: float
    score: float

    def __str__(self) -> str:
        """Say it on a line."""
        same = f"the same class at {'all' if not self.others else f'all but {self.others:,} of'} {self.pixels:,} pixels"
        return f"{same} of random pictures, scores within {self.difference:.1g} (largest {self.score:.3g})"


@dataclass(frozen=True)
class Made:
    """A file that is not written yet: its bytes, and what is told of it; no agreement: nothing was there to ask."""

    content: bytes
    sides: Sides
    agreement: Agreement | None


def export(config: Export) -> None:
    """Write the file that the settings ask for.

    Raises:
        UserError: the network cannot be loaded or exported, or what the file would compute is something else.
    """
    began, output, domain = time.monotonic(), Path(config.output), cast(Domain, config.domain)
    class_sets = {} if config.classes_from is None else read_class_sets(config.classes_from)
    trained, classes = named_network(str(config.checkpoint), class_sets, config, torch.device("cpu"))
    refuse_missing_statistics(trained, domain)
    deployed = Deployed(trained.network, domain)
    _print_plan(trained, domain, config)

    def make(sides: Sides) -> Made:
        program = followed(deployed, sides)
        about = metadata(trained, classes, deployed, sides)
        if output.suffix.lower() == ".onnx":
            content = as_onnx(program, about)
            compute = by_onnxruntime(content)
        else:
            content = as_torch_export(program, about)
            compute = by_torch(content)
        return Made(content, sides, None if compute is None else agreement(deployed, compute, sides))

    width, height = config.size or (WIDTH, HEIGHT)
    with in_silence():
        made = made_as_can_be(make, (config.batch or BATCH, height, width), trained.seen_at(domain))
    with whole_file(output) as file:
        file.write(made.content)
    print_on_main(account(f"done in {duration(time.monotonic() - began)}", _told(made, output, len(classes))))


def made_as_can_be(make: Callable[[Sides], Made], sides: Sides, trained_at: Size | None) -> Made:
    """Make a file for the sides that are wanted; where it cannot be for any size, for that of the training.

    Raises:
        UserError: it cannot be either, or that size is not known.
    """
    try:
        return make(sides)
    except UserError:
        raise
    except Exception as error:  # of torch.export, torch.onnx, onnxruntime, or of a network that checks its input
        if memory_words(error) is not None:
            raise
        reason = beginning(next(iter(str(error).split("\n")), "") or type(error).__name__, SHOWN_CHARACTERS)
    is_of_any = isinstance(sides[1], str)
    if not is_of_any:
        remedy = "batch=1" if sides[0] == BATCH else "another size, or another kind of file"
        raise UserError(f"output: this network cannot be exported for that size ({reason}); give {remedy}")
    if trained_at is None:
        raise UserError(f"output: this network cannot be exported for any size ({reason}); give size=[width,height]")
    width, height = trained_at
    print_on_main(f"note: fixed to its training's size, {width}×{height}, as it cannot be for any ({reason})")
    return made_as_can_be(make, (sides[0], height, width), None)


def agreement(deployed: Deployed, compute: Compute, sides: Sides) -> Agreement:
    """Compare what a file computes with what its network does, of pictures drawn from a generator of their own.

    Raises:
        UserError: the network's scores are not finite.
        ValueError: what the file computes is something else.
    """
    drawn = torch.Generator().manual_seed(0)
    pixels, others, difference, score = 0, 0, 0.0, 0.0
    for own in COMPARED_AT if isinstance(sides[1], str) else COMPARED_AT[:1]:
        shape = [one if isinstance(one, int) else other for one, other in zip(sides, own, strict=True)]
        pictures = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=drawn)
        with torch.inference_mode():
            expected, found = deployed(pictures), compute(pictures)
        if found.shape != expected.shape:
            raise ValueError(f"it gives {tuple(found.shape)} for {tuple(expected.shape)}")
        if not expected.isfinite().all():
            raise UserError("random pictures: the network's scores are not finite; its weights may be damaged")
        if not found.isfinite().all():
            raise ValueError("its scores are not finite")
        difference = max(difference, float((found - expected).abs().max()))
        score = max(score, float(expected.abs().max()))
        pixels += pictures[..., 0].numel()
        others += int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= MOST_DIFFERENCE * score:
        raise ValueError(f"its scores differ by {difference:.2g}, of {score:.2g} at most")
    return Agreement(pixels, others, difference, score)


def _print_plan(trained: TrainedNetwork, domain: Domain, config: Export) -> None:
    step = "" if trained.step is None else f" ({trained.step})"
    facts = {
        "network": f"{trained.name}{step}, {trained.architecture}",
        "classes": f"{trained.class_set}, {len(trained.classes)} classes",
        "statistics": "of both domains together" if trained.keeps == "shared" else f"of the {domain}",
        "output": config.output,
    }
    print_on_main(account("exporting", facts))
    if config.classes_from is None and (note := note_on_raw_ids(trained)):
        print_on_main(note)
    trained_at = trained.seen_at(domain)
    if config.size is not None and trained_at not in (None, as_size(config.size)):
        print_on_main(f"note: {trained.name}: size {config.size}, trained at {list(trained_at)}")


def _told(made: Made, output: Path, classes: int) -> dict[str, str]:
    """Return what is told of a file that is written."""
    batch, height, width = made.sides
    return {
        "file": f"{output}, {len(made.content) / 1e6:.1f} MB",
        "takes": f"pictures: uint8 ({batch}, {height}, {width}, 3), red, green and blue; normalised inside",
        "gives": f"logits: float32 ({batch}, {classes}, {height}, {width}); the class is the highest's place",
        "checked": "not: onnxruntime is not installed" if made.agreement is None else str(made.agreement),
        "next": "docs/onnx.md has a script that uses it" if output.suffix.lower() == ".onnx" else "",
    }
