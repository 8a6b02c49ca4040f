"""Curves in TensorBoard, written by the main rank."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def open_writer(folder: Path, first_step: int) -> SummaryWriter:
    """Open a run's event files; a continued run hides what an interrupted one wrote from `first_step` on."""
    return SummaryWriter(str(folder), purge_step=first_step)


def write_scalars(writer: SummaryWriter, group: str, values: Mapping[str, float], step: int) -> None:
    """Write values under "<group>/<name>"."""
    for name, value in values.items():
        writer.add_scalar(f"{group}/{name}", value, step)
