"""Curves and pictures in TensorBoard, written by the main rank."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter


def open_writer(folder: Path, steps_done: int | None) -> SummaryWriter:
    """Open a folder of event files.

    Args:
        folder: where they lie.
        steps_done: what an interrupted run wrote after them, which comes again, is hidden; None: nothing is.
    """
    return SummaryWriter(str(folder), purge_step=None if steps_done is None else steps_done + 1)


def write_scalars(writer: SummaryWriter, group: str, values: Mapping[str, float], step: int) -> None:
    """Write values under "<group>/<name>"."""
    for name, value in values.items():
        writer.add_scalar(f"{group}/{name}", value, step)


def write_pictures(writer: SummaryWriter, group: str, pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Write RGB pictures, (height, width, 3), under "<group>/<name>"."""
    for name, picture in pictures.items():
        writer.add_image(f"{group}/{name}", picture, step, dataformats="HWC")
