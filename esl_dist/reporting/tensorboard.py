"""Curves in TensorBoard, written by the main rank."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def open_writer(folder: Path, steps_done: int) -> SummaryWriter:
    """Open a run's event files; what an interrupted run wrote after `steps_done`, which comes again, is hidden."""
    return SummaryWriter(str(folder), purge_step=steps_done + 1)


def write_scalars(writer: SummaryWriter, group: str, values: Mapping[str, float], step: int) -> None:
    """Write values under "<group>/<name>"."""
    for name, value in values.items():
        writer.add_scalar(f"{group}/{name}", value, step)
