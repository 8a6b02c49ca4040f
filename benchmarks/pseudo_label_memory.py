"""Memory of the pseudo-label job on 50 pictures and on 5,000: `python benchmarks/pseudo_label_memory.py`.

Its statistics are histograms of a fixed size, so it should be flat (docs/design.md, promise 4). Pictures are noise in
256×128 and the network is `tiny` with random weights, for neither changes what is kept per picture. What is measured is
the job as it starts by default, its reading processes with it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch

from esl_dist.data.images import encode_png
from esl_dist.data.labels import SemanticClass
from esl_dist.data.shard_index import ShardIndex, write_index
from esl_dist.data.shards import Members, shard_name, write_shard
from esl_dist.models.deeplab import DeepLab
from esl_dist.models.weight_files import write_weights
from esl_dist.models.weights import initialise, published_state
from esl_dist.reporting.progress import progress

PROJECT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, CLASSES = 256, 128, 19
SAMPLES_A_SHARD = 500
COUNTS = (50, 5000)


def main() -> None:
    """Measure both, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        network = DeepLab("tiny", CLASSES, auxiliary_head=False, per_domain=False)
        initialise(network)
        write_weights(folder / "weights.safetensors", published_state(network))
        peaks = []
        for count in COUNTS:
            write_noise(folder / f"target_{count}", count)
            peaks.append(highest_memory(folder, count))
            print(f"{count} pictures: {peaks[-1] / 1e6:.0f} MB at most")
        print(f"ratio {peaks[1] / peaks[0]:.3f}")


def write_noise(folder: Path, count: int) -> None:
    """Write shards of `count` pictures of noise without labels."""

    def samples(first: int, last: int) -> Iterator[tuple[str, Members]]:
        for number in range(first, last):
            noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            yield f"{number:06d}", {"image.png": encode_png(noise)}

    starts = range(0, count, SAMPLES_A_SHARD)
    shards = [
        write_shard(folder / shard_name(place), samples(start, min(start + SAMPLES_A_SHARD, count)))
        for place, start in enumerate(progress(starts, len(starts), "packing", unit="shard"))
    ]
    classes = tuple(SemanticClass(f"class {number}", (number, 0, 0), (number,)) for number in range(CLASSES))
    write_index(folder, ShardIndex("noise", "all", (WIDTH, HEIGHT), None, {"noise": classes}, {}, tuple(shards)))


def highest_memory(folder: Path, count: int) -> int:
    """Run the job and return the highest resident memory of its processes together, in bytes."""
    words = [f"checkpoint={folder}/weights.safetensors", f"target.path={folder}/target_{count}"]
    words += [f"output={folder}/labels_{count}"]
    process = psutil.Popen([sys.executable, str(PROJECT / "launch/pseudo_label.py"), *words])
    highest = 0
    while True:
        try:
            highest = max(highest, resident_memory(process))
            process.wait(0.05)
        except psutil.TimeoutExpired:
            continue
        break
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return highest


def resident_memory(process: psutil.Process) -> int:
    """Return the resident memory of a process and all below it in bytes; what they share counts for each of them."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        # A reading process may have ended since it was listed.
        with suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


if __name__ == "__main__":
    main()
