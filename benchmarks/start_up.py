"""What a start costs, beside a plain one, and where its time goes: `python benchmarks/start_up.py [runs]`.

To the first step: `launch/train.py` as a user starts it, beside `plain_start.py`, which imports torch and takes the
same step; both leave the same weights. At step 100,000: a run that goes on, beside one that begins; stopped once more
after a step, it learns the same to the bit. Its shards have as many samples as GTA5, so that index and order are of
real size; their pictures are all one of 64×32, and the network is `tiny`, so that a step takes next to nothing.

The program itself measures help and a mistake in the settings beside `import torch`, two ranks beside two that only
meet; it sums the seconds of Python's imports (`-X importtime`) by package, and times the reading of the index.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file

from benchmarks.measure import Row, require_close, seconds, timed
from benchmarks.own_step import CLASSES, networks_of
from benchmarks.programs import PROJECT
from benchmarks.step_counts import Workload
from esl_dist import config as settings
from esl_dist.adaptation.passes import SEGMENTATION
from esl_dist.data.images import encode_png
from esl_dist.data.shard_index import ShardIndex, read_index, write_index
from esl_dist.data.shards import shard_name, write_shard
from esl_dist.data.toytown import draw_scene
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import published_state
from esl_dist.runs.checkpoints import load_newest, save_checkpoint

TRAIN = str(PROJECT / "launch/train.py")
PLAIN = str(PROJECT / "benchmarks/plain_start.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ALONE = "import torch\nprint('here', flush=True)\n"
JOINED = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
print("here", flush=True)
dist.destroy_process_group()
"""
SIZE = (64, 32)
SAMPLES = 24_966
"""Of GTA5."""

SAMPLES_A_SHARD = 1000
LONG = 100_000
"""The step at which a run goes on."""

BOUND = 1e-5
"""Of the weights after a step in float32, as a share of each tensor's largest."""

SHOWN_SECONDS = 0.02
"""Packages that take less to import are shown together."""


@dataclass(frozen=True)
class Starts:
    """What is started, and where.

    Attributes:
        folder: of the shards, of the weights that trainings begin with, and of all runs.
        numbers: of the folders of runs.
    """

    folder: Path
    numbers: "count[int]"

    def words(self, steps: int, experiments: Path, pictures: int = 1) -> tuple[str, ...]:
        """Return the program and its settings; the ones that are not named are the defaults."""
        return (
            *(TRAIN, "name=run", f"experiments={experiments}", f"source.path={self.folder}/shards"),
            *(f"batch_size={pictures}", f"steps={steps}", "log_every=1", "pictures_every=0"),
            *("method.name=source_only", "network.architecture=tiny", f"network.start={self.folder}/weights.pth"),
        )

    def begin(self) -> tuple[float, Path]:
        """Train for one step; returns the seconds from the start to it, and the run's folder."""
        experiments = self._another()
        return timed_start(self.words(1, experiments), "1/1 steps")[0], run_in(experiments)

    def go_on(self, run: Path, steps: int) -> tuple[float, Path]:
        """Train a copy of a run until so many steps are done; returns the seconds to the last, and its folder."""
        experiments = self._another()
        shutil.copytree(run, run_in(experiments))
        return timed_start(self.words(steps, experiments), f"{steps}/{steps} steps")[0], run_in(experiments)

    def plainly(self) -> tuple[float, Path]:
        """Start the plain script; returns the seconds to its step, and its weights."""
        result = self.folder / f"plain_{next(self.numbers)}.pth"
        return timed_start([PLAIN, *self.plain_words(result)], "step 1")[0], result

    def plain_words(self, result: Path) -> list[str]:
        """Return the command line of the plain script, which leaves its weights in `result`."""
        return [*(str(self.folder / name) for name in ("weights.pth", "image.png", "label.png")), str(result)]

    def _another(self) -> Path:
        return self.folder / f"experiments_{next(self.numbers)}"


def run_in(experiments: Path) -> Path:
    """Return the folder of the only run."""
    return experiments / "snapshots/run"


def rows(quick: bool) -> list[Row]:
    """Measure the way to the first step, and to the next one at step 100,000."""
    samples, times = (6, 1) if quick else (SAMPLES, 5)
    with tempfile.TemporaryDirectory() as name:
        starts = prepared(Path(name), samples)
        _, run = starts.begin()
        require_same_first_step(run, starts.plainly()[1])
        long = at_step_100_000(run)
        require_same_after_stop(starts, long)
        first, resumed = (
            "start to the first step, beside a plain script",
            "resume at step 100,000, beside a fresh start",
        )
        return [
            timed(first, lambda: starts.begin()[0], lambda: starts.plainly()[0], times, goal=0.6),
            timed(resumed, lambda: starts.go_on(long, LONG + 1)[0], lambda: starts.begin()[0], times, goal=0.8),
        ]


def prepared(folder: Path, samples: int) -> Starts:
    """Write the shards, and the weights that all trainings begin with."""
    picture, label = draw_scene("source", "train", 0, seed=0, width=SIZE[0], height=SIZE[1])
    members = {"image.png": encode_png(picture), "label.png": encode_png(label)}
    for name, content in members.items():
        (folder / name).write_bytes(content)
    shards = [
        write_shard(
            folder / "shards" / shard_name(number),
            ((f"{place:06d}", members) for place in range(first, min(first + SAMPLES_A_SHARD, samples))),
        )
        for number, first in enumerate(range(0, samples, SAMPLES_A_SHARD))
    ]
    index = ShardIndex("one picture", "train", SIZE, SIZE, {"classes19": CLASSES}, {}, tuple(shards))
    write_index(folder / "shards", index)
    network = networks_of(Workload("tiny"))[SEGMENTATION]
    assert isinstance(network, DeepLab)
    write_weights(folder / "weights.pth", published_state(network))
    return Starts(folder, count())


def at_step_100_000(run: Path) -> Path:
    """Say in a run's checkpoint, as the project writes it, that it is of step 100,000; returns the run."""
    checkpoint = load_newest(run)
    assert checkpoint is not None
    save_checkpoint(run, replace(checkpoint, step=LONG), settings.Checkpoints(keep_newest=1))
    return run


def require_same_first_step(run: Path, plain: Path) -> None:
    """Compare the weights of a run of one step with those that the plain script left.

    Raises:
        UnequalError: they differ.
    """
    ours, others = (torch.load(file, weights_only=True) for file in (run / "weights.pth", plain))
    require_close("weights after the first step", ours, others, BOUND)


def require_same_after_stop(starts: Starts, long: Path) -> None:
    """Take two steps from step 100,000, at once and in two starts, and compare.

    Raises:
        UnequalError: the weights are not the same to the bit.
    """
    _, at_once = starts.go_on(long, LONG + 2)
    _, first = starts.go_on(long, LONG + 1)
    _, stopped = starts.go_on(first, LONG + 2)
    ours, plain = (load_file(run / "weights.safetensors") for run in (stopped, at_once))
    require_close(f"weights at step {LONG + 2}", ours, plain, 0)


def timed_start(words: Sequence[str], expected: str) -> tuple[float, float]:
    """Return the seconds from the start of a program to the first line with `expected`, and to its end.

    Raises:
        RuntimeError: it failed before, or never said that.
    """
    began, said = time.perf_counter(), 0.0
    lines = []
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if expected in line and not said:
                said = time.perf_counter() - began
        process.wait()
    if not said:
        raise RuntimeError(f"{' '.join(words)}: never said {expected!r}:\n{''.join(lines)}")
    return said, time.perf_counter() - began


def main(runs: int) -> None:
    """Measure all kinds of starts in turn, and print them with what is imported on the way to a first step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = prepared(folder, SAMPLES)
        (folder / "alone.py").write_text(ALONE)
        (folder / "joined.py").write_text(JOINED)
        took: dict[str, list[tuple[float, float]]] = {}
        for run in range(runs):
            training = starts.words(1, folder / f"alone_{run}")
            together = starts.words(1, folder / f"together_{run}", pictures=2)
            for title, words, line in (
                ("import torch", (str(folder / "alone.py"),), "here"),
                ("--help", (TRAIN, "--help"), "usage"),
                ("a mistake", (TRAIN, f"source.path={folder}/shards", "method.name=none"), "impossible"),
                ("training, 1 rank", training, "1/1 steps"),
                ("import torch and join, 2 ranks", (*TORCHRUN, str(folder / "joined.py")), "here"),
                ("training, 2 ranks", (*TORCHRUN, *together), "1/1 steps"),
            ):
                took.setdefault(title, []).append(timed_start(words, line))
        for title, times in took.items():
            said, ended = (median(column) for column in zip(*times, strict=True))
            print(f"{title:32} first line {said:5.2f} s, end {ended:5.2f} s")
        program = [sys.executable, "-X", "importtime", *starts.words(1, folder / "imports")]
        told = subprocess.run(program, check=True, capture_output=True, text=True).stderr
        print(imports_table(import_seconds(told)))
        reading = seconds(lambda: read_index(folder / "shards"))
        print(f"reading the index of {SAMPLES} samples: {median(reading() for _ in range(runs)):.2f} s")


def import_seconds(told: str) -> dict[str, float]:
    """Return the seconds that modules took to import, without those that they import, by package.

    Args:
        told: what `python -X importtime` writes to standard error, a line a module.
    """
    found: Counter[str] = Counter()
    for own, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", told, re.MULTILINE):
        found[module.split(".")[0]] += int(own)
    return {name: microseconds / 1e6 for name, microseconds in found.most_common()}


def imports_table(took: Mapping[str, float]) -> str:
    """Return the seconds of packages in Markdown, of those that take least in one row."""
    shown = {name: one for name, one in took.items() if one >= SHOWN_SECONDS}
    rest = len(took) - len(shown)
    rows = {**shown, f"{rest} others": sum(took.values()) - sum(shown.values()), "all": sum(took.values())}
    return "\n".join(["| package | s |", "| --- | ---: |", *(f"| {name} | {one:.2f} |" for name, one in rows.items())])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
