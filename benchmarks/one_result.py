"""What "one result" means on one and on several ranks: `python benchmarks/one_result.py FOLDER`.

Weights that were trained on one and on two ranks are equal to rounding after one step, and then part. Three things are
printed: how fast, beside two trainings on *one* rank of which one began with one weight a last place away; whether it
shows in scores, beside what another seed changes; and what stays equal to the bit. All on drawn pictures, on CPUs.

What FOLDER holds already is not made again, so a stopped start goes on. `OMP_NUM_THREADS=1` unless it is set.
"""

import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.programs import PROJECT, packed_toytown, run
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.checked import read_content
from esl_dist.data.sampling import endless_order, rank_batches
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import initialise, published_state
from esl_dist.reporting.scores import scores_from
from esl_dist.runs.checkpoints import Checkpoint, checkpoint_folder, load_checkpoint

RECIPE = PROJECT / "configs/demo/advent.yaml"
CLASSES = 9
"""Of Toytown."""

TRAIN = "launch/train.py"
EARLY, LATE = (1, 2, 5, 14), (50, 200)
"""Steps after which weights are compared; in float64, where nothing happens, early ones alone."""

KEEP_ALL = f"checkpoints.keep_newest={2 * EARLY[-1]}"

SEEDS, SCORE_SEEDS, PAIRED_SEEDS = (0, 1, 2), range(7), range(5)
"""Of weights, of scores on one rank, and of scores that are compared with one rank's."""

WEIGHTS_SCHEDULE = "optimizer.schedule_steps=700"
"""Over which the rate falls where weights are compared."""

SCORE_STEPS = 200
SCORE_SCHEDULE = f"optimizer.schedule_steps={SCORE_STEPS}"
"""Where scores are: to the end of the training."""

SCENES = {"source_train": 400, "target_train": 400, "target_val": 100}
"""Of the demo."""

SMALL, DEMO = (64, 32), (192, 96)
"""Width and height of pictures: of those on which weights are compared, and of the demo's."""


@dataclass(frozen=True)
class Start:
    """How a run is started: name, ranks, and whether one weight begins as the next larger number."""

    name: str
    ranks: int
    last_place_off: bool = False


ONE, TWO, OFF = "1 rank", "2 ranks", "1 rank, one weight a last place off"
STARTS = {ONE: Start("one", 1), TWO: Start("two", 2), OFF: Start("off", 1, True)}


def main() -> None:
    """Print the three tables."""
    if len(sys.argv) != 2:
        sys.exit("error: name one folder for pictures, runs and scores: python benchmarks/one_result.py FOLDER")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(sys.argv[1])
    small, demo = folder / "small", folder / "demo"
    print_weights(small, packed_toytown(small, SMALL, {"source_train": 40, "target_train": 40}))
    shards = packed_toytown(demo, DEMO, SCENES)
    print_scores(demo, shards)
    print_bits(demo, shards)


@dataclass(frozen=True)
class Training:
    """A training to compare with another.

    Attributes:
        started: a name in `STARTS`.
        seed: of weights and order.
        double: whether everything is computed in float64.
    """

    started: str
    seed: int
    double: bool = False

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{STARTS[self.started].name}_seed_{self.seed}_{'float64' if self.double else 'float32'}"

    def checkpoint(self, folder: Path, step: int) -> Path:
        """Return where the checkpoint of a step is, or will be."""
        return checkpoint_folder(folder / "snapshots" / self.name, step)

    def train(self, folder: Path, shards: Path, steps: int, *words: str) -> None:
        """Train to so many steps, or go on to them, if that is not done."""
        if self.checkpoint(folder, steps).exists():
            return
        if not (start := folder / f"{self.name}.safetensors").exists():
            write_weights(start, self._first_weights())
        own = ["--config", str(RECIPE), f"name={self.name}", f"experiments={folder}", f"seed={self.seed}"]
        own += [f"source.path={shards}/source_train", f"target.path={shards}/target_train", f"network.start={start}"]
        own += [f"steps={steps}", "pictures_every=0", *words]
        in_double = ("tests/exact/in_float64.py", [str(PROJECT / TRAIN), *own])
        run(*(in_double if self.double else (TRAIN, own)), ranks=STARTS[self.started].ranks)

    def _first_weights(self) -> dict[str, Tensor]:
        torch.manual_seed(self.seed)
        network = DeepLab("tiny", CLASSES, auxiliary_head=False, per_domain=True)
        initialise(network)
        weights = published_state(network.double() if self.double else network)
        if STARTS[self.started].last_place_off:
            one = weights["conv1.weight"].view(-1)[:1]
            one.copy_(torch.nextafter(one, torch.full_like(one, torch.inf)))
        return weights


def print_weights(folder: Path, shards: Path) -> None:
    """Print how far apart the weights of two trainings of one seed are."""
    by_seed = " | ".join(f"seed {seed}" for seed in SEEDS)
    print(
        f"\nTwo trainings of AdvEnt, `tiny`, pictures of {SMALL[0]}×{SMALL[1]}, batch 4. Of the segmentation network's"
    )
    print(
        "tensors, running statistics too, the largest |a − b| / max |b|, by seed; then, of the middle seed, the median"
    )
    print(
        "over these, the largest of the discriminator's, and the share of ReLUs that are on in one, off in the other.\n"
    )
    print(f"| {ONE} and | precision | after steps | {by_seed} | median | discriminator | ReLUs |")
    print("| --- | --- | ---: |" + " ---: |" * (len(SEEDS) + 3))
    for other, double in ((TWO, False), (OFF, False), (TWO, True)):
        pairs = [[Training(started, seed, double) for started in (ONE, other)] for seed in SEEDS]
        for one in chain(*pairs):
            one.train(folder, shards, EARLY[-1], WEIGHTS_SCHEDULE, "checkpoints.every=1", KEEP_ALL)
            if not double:
                one.train(folder, shards, LATE[-1], WEIGHTS_SCHEDULE, f"checkpoints.every={LATE[0]}", KEEP_ALL)
        for step in EARLY if double else (*EARLY, *LATE):
            apart = [compare(*(load_checkpoint(one.checkpoint(folder, step)) for one in pair)) for pair in pairs]
            largest, *others = zip(*apart, strict=True)
            shown = [*largest, *(statistics.median(column) for column in others)]
            cells = " | ".join(f"{value:.1e}" if value else "0" for value in shown)
            print(f"| {other} | {'float64' if double else 'float32'} | {step} | {cells} |", flush=True)


class Apart(NamedTuple):
    """How far apart two checkpoints are.

    Attributes:
        largest: of the segmentation network's tensors, running statistics too, the largest max |a − b| / max |b|.
        median: over these tensors.
        others: the largest of the other networks' tensors.
        relus: share of the ReLUs that are on in one and off in the other.
    """

    largest: float
    median: float
    others: float
    relus: float


def compare(one: Checkpoint, other: Checkpoint) -> Apart:
    """Return how far apart two checkpoints of one training are."""
    apart = {
        name: [
            _relative(network[key], other.networks[name][key]) for key in network if network[key].is_floating_point()
        ]
        for name, network in one.networks.items()
    }
    own = apart.pop(SEGMENTATION)
    masks, others = (relus_on(checkpoint) for checkpoint in (one, other))
    flipped = float((masks != others).double().mean())
    return Apart(max(own), statistics.median(own), max(chain(*apart.values()), default=0.0), flipped)


def _relative(one: Tensor, other: Tensor) -> float:
    """Return max |one − other| / max |other|; 0 for two tensors of zeros."""
    largest = float(other.abs().max())
    return float((one - other).abs().max()) / largest if largest > 0 else float(one.abs().max() > 0)


class NoteReLUs(TorchFunctionMode):
    """Notes, of each ReLU, whether it is on."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.on: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note what `relu` gives."""
        output = func(*args, **(kwargs or {}))
        if func is F.relu:
            self.on.append((output > 0).flatten())
        return output


def relus_on(checkpoint: Checkpoint) -> Tensor:
    """Return which ReLUs are on when the checkpoint's network sees four pictures of noise, in training."""
    network = DeepLab("tiny", CLASSES, auxiliary_head=False, per_domain=True)
    weights = checkpoint.networks[SEGMENTATION]
    network.to(weights["conv1.weight"].dtype).load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    pictures = 50 * torch.randn(4, 3, SMALL[1], SMALL[0], generator=generator, dtype=torch.float64)
    with torch.no_grad(), NoteReLUs() as noted:
        network.train()(pictures.to(weights["conv1.weight"].dtype), "source")
    return torch.cat(noted.on)


def print_scores(folder: Path, shards: Path) -> None:
    """Print mIoU by seed, on one and two ranks, and how far apart they are."""
    print(f"\nmIoU in percent of AdvEnt on {DEMO[0]}×{DEMO[1]}, the demo's recipe with {SCORE_STEPS} steps, by seed\n")
    found: dict[str, dict[int, float]] = {}
    for started in STARTS:
        seeds = SCORE_SEEDS if started == ONE else PAIRED_SEEDS
        found[started] = {seed: score(folder, shards, Training(started, seed)) for seed in seeds}
    print("| started | " + " | ".join(f"seed {seed}" for seed in SCORE_SEEDS) + " | min | median | max | std |")
    print("| --- |" + " ---: |" * (len(SCORE_SEEDS) + 4))
    for started, by_seed in found.items():
        cells = [f"{by_seed[seed]:.2f}" if seed in by_seed else "" for seed in SCORE_SEEDS]
        values = list(by_seed.values())
        spread = [min(values), statistics.median(values), max(values), statistics.stdev(values)]
        print(f"| {started} | " + " | ".join(cells + [f"{value:.2f}" for value in spread]) + " |")
    one = found[ONE]
    between_seeds = [abs(a - b) for a in one.values() for b in one.values() if a is not b]
    print(f"\nmedian difference of two seeds on 1 rank: {statistics.median(between_seeds):.2f}")
    for started in (TWO, OFF):
        apart = [abs(value - one[seed]) for seed, value in found[started].items()]
        print(f"difference of 1 rank and {started}, same seed: " + ", ".join(f"{value:.2f}" for value in apart))


def trained(folder: Path, shards: Path, training: Training) -> Path:
    """Train for the scores, if that is not done; returns the last checkpoint."""
    training.train(folder, shards, SCORE_STEPS, SCORE_SCHEDULE)
    return training.checkpoint(folder, SCORE_STEPS)


def score(folder: Path, shards: Path, training: Training) -> float:
    """Return mIoU on the target's validation set, in percent."""
    file = folder / "scores" / f"{training.name}.json"
    if not file.exists():
        evaluate(trained(folder, shards, training), shards, file)
    return 100 * float(scores_from(read_content(file, "delete it and start again"))["miou"])


def evaluate(checkpoint: Path, shards: Path, output: Path, ranks: int = 1) -> None:
    """Write a network's scores on the target's validation set."""
    words = [f"checkpoint={checkpoint}", f"data.path={shards}/target_val", f"output={output}", "workers=0"]
    run("launch/evaluate.py", words, ranks)


def print_bits(folder: Path, shards: Path) -> None:
    """Print what is the same to the bit, whatever the processes."""
    checkpoint = trained(folder, shards, Training(ONE, 0))
    for ranks in (1, 2):
        labels = folder / f"labels_{ranks}"
        if not (labels / "summary.json").exists():
            words = [f"checkpoint={checkpoint}", f"target.path={shards}/target_train", f"output={labels}", "workers=0"]
            run("launch/pseudo_label.py", words, ranks)
        if not (scores := folder / f"scores_{ranks}" / "scores.json").exists():
            evaluate(checkpoint, shards, scores, ranks)
    packed_by_two = packed_toytown(folder, DEMO, SCENES, processes=2)
    print("\n| of one checkpoint and data set | compared | equal to the bit |\n| --- | --- | --- |")
    for what, compared, (one, two) in (
        ("shards", "packed by 1 and 2 processes", (shards, packed_by_two)),
        ("thresholds and pseudo-labels", "1 and 2 ranks", (folder / "labels_1", folder / "labels_2")),
        ("scores", "1 and 2 ranks", (folder / "scores_1", folder / "scores_2")),
    ):
        first, second = contents(one), contents(two)
        size = sum(len(content) for content in first.values()) / 1e3
        print(f"| {what}: {len(first)} files, {size:,.0f} kB | {compared} | {'yes' if first == second else 'NO'} |")
    steps, same = order_is_the_same(ranks=2)
    print(
        f"| order of samples: {steps} steps of batch 4 over 400 pictures | 1 and 2 ranks | {'yes' if same else 'NO'} |"
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by its path in it; what a job keeps for itself (`.lock`, …) is left out."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (folder / path).read_bytes() for path in paths if not str(path).startswith(".")}


def order_is_the_same(ranks: int, steps: int = 1000, batch_size: int = 4) -> tuple[int, bool]:
    """Return a number of steps, and whether the ranks' parts of each are what a single rank takes."""

    def parts(rank: int, world_size: int) -> list[list[int]]:
        batches = rank_batches(endless_order(400, 256, 0, 0, 0), batch_size, 1, rank, world_size)
        return [next(batches) for _ in range(steps)]

    together = zip(*(parts(rank, ranks) for rank in range(ranks)), strict=True)
    return steps, parts(0, 1) == [list(chain(*own)) for own in together]


if __name__ == "__main__":
    main()
