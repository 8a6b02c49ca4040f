"""(g) Pseudo-label and evaluation jobs on drawn shards of both sizes: pictures a second, and the share of GPU time.

A job is run on few and on many pictures; what the difference took is the job without its start. Starts differ by a
second or so, which is why there are many. The network alone is timed beside it, on pictures that lie on the device.
"""

import contextlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.drawn import drawn_shards
from benchmarks.gpu.sizes import DrawnSet, Row, Rows, Size, Sizes
from benchmarks.gpu.timing import cost_of
from benchmarks.own_step import noise
from benchmarks.programs import run
from esl_dist import config as settings
from esl_dist.config_files import from_dictionary
from esl_dist.inference.inputs import open_inputs
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import initialise, published_state

CLASSES, PRECISION = 19, "bf16"
JOBS = {"pseudo-labels": ("launch/pseudo_label.py", "target"), "evaluation": ("launch/evaluate.py", "data")}
"""Program of a job, and its setting of the pictures."""


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield a row for each job and data set."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = drawn_weights(folder / "weights.safetensors", sizes.workload.architecture)
        # Cityscapes first: it is the target.
        for data_set, drawn in reversed(sizes.drawn().items()):
            shards = {count: drawn_shards(folder, data_set, drawn.size, count) for count in sizes.job_pictures}
            alone = network_alone(weights, shards[sizes.job_pictures[0]], drawn.read_at, sizes, device)
            for kind in JOBS:
                yield Job(kind, data_set, drawn, shards, weights, sizes.workers).row(alone)


def drawn_weights(file: Path, architecture: str) -> Path:
    """Write a network of random weights."""
    torch.manual_seed(0)
    network = DeepLab(architecture, CLASSES, auxiliary_head=True, per_domain=False)
    initialise(network)
    write_weights(file, published_state(network))
    return file


def network_alone(weights: Path, shards: Path, size: Size, sizes: Sizes, device: torch.device) -> float:
    """Return the seconds of a forward pass of a picture, as the jobs make it."""
    content = {"checkpoint": str(weights), "target": {"path": str(shards), "size": list(size)}, "output": "none"}
    config = from_dictionary(settings.PseudoLabel, {**content, "precision": PRECISION}, "benchmarks")
    predictor = open_inputs(config.target, config, device).load(weights)
    images = noise(size, range(1), 0, device)["images"]
    with torch.inference_mode():
        return cost_of(lambda: predictor.logits(images), device, sizes).seconds


@dataclass(frozen=True)
class Job:
    """A job on few and on many pictures.

    Attributes:
        kind: a name in `JOBS`.
        data_set: whose pictures.
        drawn: their sizes.
        shards: by number of pictures, few and many.
        weights: of the network.
        workers: processes that read.
    """

    kind: str
    data_set: str
    drawn: DrawnSet
    shards: Mapping[int, Path]
    weights: Path
    workers: int

    def row(self, alone: float) -> Row:
        """Run the job on few and on many pictures; `alone` is the seconds that the network takes for one."""
        few, many = self.shards
        with gpu_use() as shares:
            short, long = (self._seconds(count) for count in (few, many))
        own, read = ("×".join(map(str, size)) for size in (self.drawn.size, self.drawn.read_at))
        what = f"{self.kind}, {self.data_set}, {own} read at {read}"
        if (picture := (long - short) / (many - few)) <= 0:
            return {"what": what, "words": f"too few pictures: {many} took no longer than {few}"}
        busy = f"{statistics.mean(shares):.0f} %" if shares else "unknown"
        return {
            "what": what,
            "pictures/s": round(1 / picture, 2),
            "network alone, pictures/s": round(1 / alone, 2),
            "of the network's speed": f"{100 * alone / picture:.0f} %",
            "GPU busy, start included": busy,
            "start s": round(max(short - few * picture, 0), 2),
        }

    def _seconds(self, count: int) -> float:
        program, pictures = JOBS[self.kind]
        words = [f"checkpoint={self.weights}", f"{pictures}.path={self.shards[count]}", "class_set=cityscapes19"]
        words += [f"{pictures}.size={list(self.drawn.read_at)}".replace(" ", ""), f"precision={PRECISION}"]
        output = self.weights.with_name(f"{self.data_set}_{self.kind}_{count}")
        words += [f"workers={self.workers}", f"output={output if pictures == 'target' else output / 'scores.json'}"]
        begin = time.monotonic()
        run(program, [*words, *([f"experiments={output}"] if pictures == "data" else [])])
        return time.monotonic() - begin


@contextlib.contextmanager
def gpu_use() -> Iterator[list[float]]:
    """Collect, while the block runs, the shares of time in percent in which nvidia-smi saw the GPU at work."""
    shares: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200"]
    try:
        watching = subprocess.Popen([*command, "--id=0"], stdout=subprocess.PIPE, text=True)
    except OSError:
        yield shares
        return
    try:
        yield shares
    finally:
        watching.terminate()
        seen, _ = watching.communicate()
        shares += [float(line) for line in seen.splitlines() if line.strip().isdigit()]
