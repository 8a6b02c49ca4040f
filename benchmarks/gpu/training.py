"""(h) The loader alone, then `launch/train.py` from end to end beside the step alone."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch

from benchmarks.gpu.conditions import Conditions, build
from benchmarks.gpu.drawn import drawn_shards
from benchmarks.gpu.sizes import DrawnSet, Row, Rows, Size, Sizes
from benchmarks.gpu.timing import cost_of
from benchmarks.programs import PROJECT, run
from benchmarks.step_counts import Workload
from esl_dist.data.loading import LabelSource, Samples, batches
from esl_dist.data.sampling import as_they_are, endless_order, rank_batches
from esl_dist.data.shards import choose_classes, open_shards
from esl_dist.data.workers import Workers
from esl_dist.ranks.precision import convolutions

CLASS_SET, PRECISION = "cityscapes19", "bf16"
FIRST_BATCHES, TIMED_BATCHES = 8, 40
"""Read before the clock starts: what the processes have read ahead by then; and read under it."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield the loader's speed by how the pictures were packed, then that of whole trainings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = {
            way: {domain: _shards(folder, domain, drawn, way) for domain, drawn in sizes.drawn().items()}
            for way in ("as they are", "png", "jpg")
        }
        for way, shards in packed.items():
            for domain, drawn in sizes.drawn().items():
                yield loader(shards[domain], drawn, f"{domain}, packed {_told(way)}", sizes, device)
        for pictures in sizes.pictures:
            yield end_to_end(folder, packed["jpg"], pictures, sizes, device)


def _told(way: str) -> str:
    return way if way == "as they are" else f"at training size, {way}"


def _in_words(size: Size) -> str:
    return f"[{size[0]},{size[1]}]"


def _shards(folder: Path, data_set: str, drawn: DrawnSet, way: str) -> Path:
    read_at = _in_words(drawn.read_at)
    words = [] if way == "as they are" else [f"size={read_at}", f"label_size={read_at}", f"image_format={way}"]
    return drawn_shards(folder, data_set, drawn.size, drawn.pictures, *words)


def loader(folder: Path, drawn: DrawnSet, told: str, sizes: Sizes, device: torch.device) -> Row:
    """Time batches of a picture, with their labels, as a training reads them."""
    shards = open_shards(str(folder))
    samples = Samples(shards, drawn.read_at, LabelSource(shards, choose_classes(shards, CLASS_SET)[1]), drawn.read_at)
    positions = rank_batches(endless_order(len(samples), 1024, 0, 0, 0), 1, 1, 0, 1)
    workers = Workers(sizes.workers, 1.0)
    with closing(batches(samples, as_they_are(positions), workers, device.type == "cuda")) as read:
        for _ in islice(read, FIRST_BATCHES):
            pass
        begin = time.perf_counter()
        for _ in islice(read, TIMED_BATCHES):
            pass
        seconds = time.perf_counter() - begin
    rate = TIMED_BATCHES / seconds
    return {
        "what": f"loader: {told}",
        "pictures/s": round(rate, 1),
        "processes": sizes.workers,
        "of each": round(rate / max(sizes.workers, 1), 1),
    }


def end_to_end(folder: Path, shards: Mapping[str, Path], pictures: int, sizes: Sizes, device: torch.device) -> Row:
    """Time whole trainings of few and of many steps, and the step alone."""
    workload = sizes.workload
    few, many = (number // pictures for number in sizes.training_pictures)
    short, long = (_train(folder, shards, pictures, steps, sizes) for steps in (few, many))
    what = f"launch/train.py, batch {pictures}, {PRECISION}"
    if (seconds := (long - short) / (many - few)) <= 0:
        return {"what": what, "words": f"too few steps: {many} took no longer than {few}"}
    with convolutions(PRECISION):
        alone = cost_of(
            build(_of_drawn(workload, sizes), Conditions(device, PRECISION, pictures)), device, sizes
        ).seconds
    return {
        "what": what,
        "ms a step": round(1e3 * seconds, 2),
        "step alone, ms": round(1e3 * alone, 2),
        "of the step's speed": f"{100 * alone / seconds:.0f} %",
        "start and end s": round(max(short - few * seconds, 0), 2),
    }


def _of_drawn(workload: Workload, sizes: Sizes) -> Workload:
    return Workload(
        workload.architecture,
        workload.classes,
        sizes.gta5.read_at,
        sizes.cityscapes.read_at,
        workload.auxiliary,
        workload.channels,
    )


def _train(folder: Path, shards: Mapping[str, Path], pictures: int, steps: int, sizes: Sizes) -> float:
    words = ["--config", str(PROJECT / "configs/gta5_cityscapes/advent.yaml"), "network.start=null"]
    words += [f"network.architecture={sizes.workload.architecture}", f"precision={PRECISION}", f"batch_size={pictures}"]
    words += [f"method.discriminator_channels={sizes.workload.channels}", f"loader.workers={sizes.workers}"]
    for domain, data_set, drawn in (("source", "gta5", sizes.gta5), ("target", "cityscapes", sizes.cityscapes)):
        words += [f"{domain}.path={shards[data_set]}", f"{domain}.size={_in_words(drawn.read_at)}"]
    words += [f"steps={steps}", f"name=batch_{pictures}_steps_{steps}", f"experiments={folder / 'runs'}"]
    begin = time.monotonic()
    run("launch/train.py", [*words, "pictures_every=0", "checkpoints.keep_every=0"])
    return time.monotonic() - begin
