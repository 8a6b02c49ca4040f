"""The table of commands: what each starts, what it is for, and how it is typed.

Nothing is imported for it, so that `esl-dist --help` answers at once; the settings of a program come with its class.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A program as a command.

    Attributes:
        program: its module in `esl_dist.programs`.
        schema: the class of its settings in `esl_dist.config`.
        summary: what it is for, in one line.
        examples: how it is typed, without `esl-dist`.
        listed: the setting that words without `=` are put into, as a list; None: there is none.
        reading: the function of its module that makes settings of its words; None: they are settings.
        asked_about: the table of its module, name → class of settings, with programs whose settings it takes, too: of
            that which the first word names, or else of the first one; None: there are none.
    """

    program: str
    schema: str
    summary: str
    examples: tuple[str, ...]
    listed: str | None = None
    reading: str | None = None
    asked_about: str | None = None

    def settings(self) -> type:
        """Return the class of its settings."""
        schema: type = getattr(importlib.import_module("esl_dist.config"), self.schema)
        return schema

    def read(self, words: Sequence[str]) -> list[str]:
        """Return words of the command line as its settings."""
        if self.reading is None:
            return list(words)
        settings: list[str] = getattr(self._module(), self.reading)(words)
        return settings

    def programs(self) -> Mapping[str, type]:
        """Return the programs that its first word may name, each with the class of its settings."""
        table: Mapping[str, type] = {} if self.asked_about is None else getattr(self._module(), self.asked_about)
        return table

    def main(self) -> Any:
        """Return the function that does its work; imports no torch yet."""
        return self._module().main

    def _module(self) -> Any:
        return importlib.import_module(f"esl_dist.programs.{self.program}")


COMMANDS = {
    "pack": Command(
        "prepare",
        "Prepare",
        "Pack one split of a data set into shards.",
        (
            "pack dataset=cityscapes root=/data/cityscapes split=train output=shards/cityscapes_train",
            'pack dataset=gta5 root=/data/gta5 split=all output=shards/gta5 "size=[1280,720]" "label_size=[1280,720]"',
        ),
    ),
    "train": Command(
        "train",
        "Train",
        "Adapt a segmentation network, or go on where an earlier start of the same run stopped.",
        (
            "train --config gta5_cityscapes/advent",
            "train --config my.yaml name=second seed=1 precision=bf16",
            "train source.path=shards/gta5 target.path=shards/cityscapes_train method.name=minent",
        ),
    ),
    "pseudo-label": Command(
        "pseudo_label",
        "PseudoLabel",
        "Label the target where the network may be trusted.",
        (
            "pseudo-label checkpoint=experiments/snapshots/RUN target.path=shards/cityscapes_train output=labels",
            "pseudo-label checkpoint=network.safetensors target.path=shards/mine output=labels score=confidence",
        ),
    ),
    "evaluate": Command(
        "evaluate",
        "Evaluate",
        "Score a network, an ensemble, or all snapshots of a run on labelled shards.",
        (
            "evaluate checkpoint=experiments/snapshots/RUN data.path=shards/cityscapes_val output=scores.json",
            "evaluate mode=best checkpoint=experiments/snapshots/RUN data.path=shards/cityscapes_val",
        ),
    ),
    "predict": Command(
        "predict",
        "Predict",
        "Label pictures of one's own by a trained network.",
        (
            "predict checkpoint=experiments/snapshots/RUN pictures=FOLDER output=masks",
            'predict checkpoint=experiments/snapshots/RUN pictures=film.mp4 output=m "save=[raw_ids,overlay,entropy]"',
        ),
    ),
    "export": Command(
        "export",
        "Export",
        "Write a trained network as one file that runs without this project.",
        ("export checkpoint=experiments/snapshots/RUN output=network.onnx",),
    ),
    "report": Command(
        "report",
        "Report",
        "Write runs, their scores and pseudo-labels as one page.",
        ("report experiments/snapshots/RUN experiments/snapshots/OTHER output=report.html",),
        listed="runs",
    ),
    "demo": Command(
        "demo",
        "Demo",
        "The whole loop on drawn pictures, from drawing to one table, in some ten minutes of two cores.",
        ("demo", "demo seed=1 output=experiments/second"),
    ),
    "doctor": Command(
        "doctor",
        "Doctor",
        "Say what this machine has, and whether a recipe can run on it.",
        (
            "doctor",
            "doctor --config gta5_cityscapes/advent batch_size=8 processes=8",
            "doctor pseudo-label checkpoint=experiments/snapshots/RUN target.path=shards/mine output=labels",
        ),
        reading="words_of_doctor",
        asked_about="PROGRAMS",
    ),
}
