"""What a start costs beside importing torch and starting the ranks: `python benchmarks/start_up.py [runs]`.

Three pairs, in turn and several times over, of which medians are printed: help and a mistake in the settings beside
`import torch`; a training of one step beside a script that imports torch and ends, on one rank; the same on two ranks
of torchrun, where the script joins them with gloo. What is timed is the first line that tells of a step, or of ranks
that have met, and the end. The network is `tiny`, its pictures 64×32, so that a step takes next to nothing.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esl_dist.data.toytown import write_toytown

PROJECT = Path(__file__).resolve().parent.parent
TRAIN = str(PROJECT / "launch/train.py")
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
TINY = (
    *("network.architecture=tiny", "method.discriminator_channels=4", "batch_size=2", "loader.workers=0"),
    *("loader.shuffle_window=8", "log_every=1", "pictures_every=0", "steps=1"),
)


def main(runs: int) -> None:
    """Measure all of them in turn, so that a busy machine is busy for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = packed(folder)
        (folder / "alone.py").write_text(ALONE)
        (folder / "joined.py").write_text(JOINED)
        took: dict[str, list[tuple[float, float]]] = {}
        for run in range(runs):
            training = (TRAIN, *TINY, *data, f"experiments={folder}/{run}")
            for title, words, line in (
                ("import torch", (str(folder / "alone.py"),), "here"),
                ("--help", (TRAIN, "--help"), "usage"),
                ("a mistake", (TRAIN, *data, "method.name=none"), "impossible"),
                ("training, 1 rank", (*training, "name=one"), "1/1 steps"),
                ("import torch and join, 2 ranks", (*TORCHRUN, str(folder / "joined.py")), "here"),
                ("training, 2 ranks", (*TORCHRUN, *training, "name=two"), "1/1 steps"),
            ):
                took.setdefault(title, []).append(timed(words, line))
    for title, times in took.items():
        said, ended = (median(column) for column in zip(*times, strict=True))
        print(f"{title:32} first line {said:5.2f} s, end {ended:5.2f} s")
    for title, beside in (
        ("training, 1 rank", "import torch"),
        ("training, 2 ranks", "import torch and join, 2 ranks"),
    ):
        more = [median(one - other for one, other in pairs) for pairs in differences(took[title], took[beside])]
        print(f"{title}: {more[0]:.2f} s more to the first step, {more[1]:.2f} s more to the end")


def packed(folder: Path) -> list[str]:
    """Draw and pack six scenes of each domain; returns the settings that name their shards."""
    counts = {"source_train": 6, "target_train": 6}
    write_toytown(folder / "pictures", seed=1, counts=counts, width=64, height=32)
    for split in counts:
        words = [f"dataset={PROJECT}/configs/datasets/toytown.yaml", f"root={folder}/pictures", f"split={split}"]
        program = [sys.executable, str(PROJECT / "shards/prepare.py"), *words, f"output={folder}/{split}"]
        subprocess.run(program, check=True, capture_output=True)
    return [f"source.path={folder}/source_train", f"target.path={folder}/target_train"]


def timed(words: Sequence[str], expected: str) -> tuple[float, float]:
    """Return the seconds from the start of a program to the first line with `expected`, and to its end."""
    began, said = time.perf_counter(), 0.0
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if expected in line and not said:
                said = time.perf_counter() - began
        process.wait()
    if not said:
        raise SystemExit(f"{' '.join(words)}: never said {expected!r}:\n{''.join(lines)}")
    return said, time.perf_counter() - began


def differences(
    one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]
) -> list[list[tuple[float, float]]]:
    """Return the pairs of each run, for the first line and for the end."""
    return [[(a[place], b[place]) for a, b in zip(one, other, strict=True)] for place in (0, 1)]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
