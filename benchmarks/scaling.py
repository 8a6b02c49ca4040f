"""What a step costs and what more GPUs bring: the tables of docs/scaling.md: `python benchmarks/scaling.py`.

Counted: arithmetic, traffic, memory and bytes sent of a step of the published training. Predicted from these by
`cost_model.py`, whose inputs are named there: the time of a step on many GPUs, and what would shorten it. Measured on
this machine: what two ranks send, and how well the same sum of terms foretells the time of a small step on two ranks,
over loopback and (as root, with iproute2) over a slow link.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from benchmarks.cost_model import (
    ETHERNET,
    INFINIBAND,
    Fabric,
    Gpu,
    Way,
    Work,
    all_gather,
    all_reduce,
    efficiency,
    predict,
)
from benchmarks.programs import PROJECT, output_of_first_rank, packed_toytown, run, slow_hosts
from benchmarks.step_counts import PASSES, Sent, Workload, count_step, sent_in_step
from benchmarks.timed_step import SMALL_BYTES
from esl_dist.data.images import decode_image, decode_label, encode_png, resize_image, resize_label
from esl_dist.data.toytown import draw_scene

GPUS = (1, 8, 64, 512)
PICTURES = (1, 4)
"""Of each domain, a GPU and step."""

DEMO = Workload("tiny", 9, (64, 32), (64, 32), auxiliary=False, channels=16)
"""The small step that is timed here."""

DEMO_PICTURES, DEMO_STEPS = 2, 40
SLOW_MEGABITS = 200

ANSWERS = {
    "gradients summed after the passes, as once": Way(overlap=False),
    "as it is": Way(),
    "+ a layer as fast as one rank's": Way(fused=True),
    "+ sums in place of the gather": Way("reduce", fused=True),
    "+ gradients sent in bfloat16 *": Way("reduce", fused=True, gradient_bytes=2),
    "+ accumulate=4": Way("reduce", fused=True, gradient_bytes=2, accumulate=4),
    "batch norm within a node *": Way("node", fused=True),
    "batch norm of each picture: network.normalise_over=picture *": Way("picture"),
    "batch norm frozen *": Way("none"),
}
"""What answers the costs, each with those above it that begin with a plus; with a star: another result."""


def main() -> None:
    """Print all tables."""
    workload = Workload()
    print_counts(workload)
    works = {(pictures, gpus): count_work(workload, pictures, gpus) for pictures in PICTURES for gpus in GPUS}
    with tempfile.TemporaryDirectory() as folder:
        print_sent(workload, count_sent(Path(folder)))
    print_predictions(works, Gpu())
    print_answers(works, Gpu())
    print_sensitivity(works)
    print_measured()
    print_loader(works, Gpu())


def count_work(workload: Workload, pictures: int, gpus: int) -> Work:
    """Count a rank's step, alone and as one of so many."""
    ranks = max(gpus, 2)
    alone, together = count_step(workload, pictures), count_step(workload, pictures, ranks)
    return Work(alone, together, sent_in_step(workload.networks(), ranks, ranks * pictures))


def table(head: str, rows: Iterator[Sequence[str]]) -> None:
    """Print a table in Markdown; the first column to the left."""
    columns = head.split(" | ")
    print(f"\n| {head} |\n| --- |" + " ---: |" * (len(columns) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_counts(workload: Workload) -> None:
    """Print arithmetic, operations, traffic and memory kept of a rank's step."""
    (width, height), (target_width, target_height) = workload.source, workload.target
    print(
        f"\nCounted: AdvEnt, {workload.architecture}, source {width}×{height}, target {target_width}×{target_height};"
    )
    print("kept is what waits for a backward pass, of a whole step that of the pass with the most.")

    def row(pictures: int, half: bool, ranks: int, parts: Sequence[str]) -> Sequence[str]:
        counts = count_step(workload, pictures, ranks, half)
        operations = [one for part in parts for one in counts.operations[part]]
        kept = max(counts.kept.get(part, 0) for part in parts)
        return (
            f"{pictures}, {'bf16' if half else 'float32'}, {'alone' if ranks == 1 else 'over ranks'}",
            parts[0] if len(parts) == 1 else "whole step",
            f"{sum(one.flops for one in operations) / 1e12:.2f}",
            str(len(operations)),
            f"{sum(one.traffic for one in operations) / 1e9:.1f}",
            f"{kept / 2**30:.2f}",
        )

    def rows() -> Iterator[Sequence[str]]:
        for part in PASSES:
            yield row(1, True, 1, [part])
        for pictures, half, ranks in product(PICTURES, (False, True), (1, 2)):
            yield row(pictures, half, ranks, PASSES)

    table("pictures, precision, batch norm | part | TFLOP | operations | GB read and written | GiB kept", rows())


def print_sent(workload: Workload, counted: Mapping[str, tuple[int, int]]) -> None:
    """Print what a rank puts into collectives: counted and derived for the small network, derived for the large one."""
    print(
        "\nWhat a rank puts into the collectives of a step: number, and bytes. Counted are those of launch/train.py on"
    )
    print("two ranks over gloo, derived those that the shapes of the networks give.")

    def row(what: str, by_caller: Mapping[str, tuple[int, int]]) -> Sequence[str]:
        return what, *(f"{number}: {size:,} B" for number, size in by_caller.values())

    def rows() -> Iterator[Sequence[str]]:
        yield row("tiny, 2 ranks, counted", counted)
        yield row("tiny, 2 ranks, derived", by_caller(sent_in_step(DEMO.networks(), 2, 2 * DEMO_PICTURES)))
        for gpus in GPUS[1:]:
            sent = sent_in_step(workload.networks(), gpus, gpus)
            yield row(f"{workload.architecture}, {gpus} ranks, derived", by_caller(sent))

    table("step | batch norm forwards | batch norm backwards | gradients | agreement", rows())


def by_caller(sent: Sent) -> dict[str, tuple[int, int]]:
    """Return number and bytes of the collectives by what they are for."""
    return {
        "batch norm forwards": (len(sent.gathered), sum(sent.gathered)),
        "batch norm backwards": (len(sent.reduced), sum(sent.reduced)),
        "gradients": (len(sent.gradients), sum(sent.gradients)),
        "agreement": (1, sent.agreement),
    }


CALLERS = {
    "_global_mean_and_variance": "batch norm forwards",
    "_NormaliseOverRanks.backward": "batch norm backwards",
    "StepGradients._begin_sum": "gradients",
    "agreement.prepare": "agreement",
}


def count_sent(folder: Path) -> dict[str, tuple[int, int]]:
    """Train on two ranks for two steps and for three; returns what the third step sent, by what it is for."""
    shards = packed_toytown(folder, DEMO.source, {"source_train": 8, "target_train": 8})
    noted = []
    for steps in (2, 3):
        words = ["--config", str(PROJECT / "configs/demo/advent.yaml"), f"name={steps}", f"experiments={folder}"]
        words += [f"source.path={shards}/source_train", f"target.path={shards}/target_train", f"steps={steps}"]
        words += [f"batch_size={2 * DEMO_PICTURES}", "log_every=100", "pictures_every=0"]
        note = folder / f"sent_{steps}"
        run("tests/exact/note_collectives.py", [str(note), str(PROJECT / "launch/train.py"), *words], ranks=2)
        noted.append(note.with_name(f"{note.name}.0").read_text())
    return sent_beyond(*noted)


def sent_beyond(shorter: str, longer: str) -> dict[str, tuple[int, int]]:
    """Return number and bytes of what a longer run sent beyond a shorter one, by what it is for.

    Args:
        shorter, longer: notes of `tests/exact/note_collectives.py`, a line a collective.
    """
    found = dict.fromkeys(CALLERS.values(), (0, 0))
    beyond = Counter(longer.splitlines()) - Counter(shorter.splitlines())
    for kind, caller, size in map(json.loads, beyond.elements()):
        if kind == "wait":
            continue
        name = next(name for end, name in CALLERS.items() if caller.endswith(end))
        found[name] = found[name][0] + 1, found[name][1] + size
    return found


def print_predictions(works: Mapping[tuple[int, int], Work], gpu: Gpu) -> None:
    """Print the predicted time of a step and its parts, by number of GPUs."""
    for fabric in (INFINIBAND, ETHERNET):
        print(f"\nPredicted, bf16, milliseconds of a step as it is: {fabric.name}.")
        head = "pictures a GPU | GPUs | a rank's own passes | batch norm's layers over ranks | their collectives | "
        head += "gradients | host | slowest rank | step | pictures/s | efficiency"

        def rows(fabric: Fabric = fabric) -> Iterator[Sequence[str]]:
            for (pictures, gpus), work in works.items():
                found = predict(work, gpus, fabric, gpu)
                parts = (found.passes, found.layers, found.statistics, found.gradients, found.host, found.slowest)
                yield (
                    str(pictures),
                    str(gpus),
                    *(f"{1e3 * seconds:.1f}" for seconds in (*parts, found.total())),
                    f"{pictures * gpus / found.total():.0f}",
                    f"{100 * efficiency(work, gpus, fabric, gpu):.0f} %",
                )

        table(head, rows())
    print("\nPredicted, microseconds of one collective of batch norm (512 channels) by GPUs: all_gather, all_reduce")
    for fabric in (INFINIBAND, ETHERNET):
        shown = [
            f"{n}: {1e6 * all_gather(4096, n, fabric):.0f}, {1e6 * all_reduce(4096, n, fabric):.0f}" for n in GPUS[1:]
        ]
        print(f"- {fabric.name}: " + "; ".join(shown))


def print_answers(works: Mapping[tuple[int, int], Work], gpu: Gpu) -> None:
    """Print the predicted efficiency with each answer."""
    print("\nPredicted efficiency with what answers it (*: another result than one GPU's).")
    cells = [
        (fabric, pictures, gpus) for fabric in (INFINIBAND, ETHERNET) for pictures in PICTURES for gpus in GPUS[1:]
    ]
    # On a single node both networks are the same.
    cells = [cell for cell in cells if cell[0] is INFINIBAND or cell[2] > cell[0].node]
    head = " | ".join(
        f"{'IB' if fabric is INFINIBAND else 'Eth'}, {pictures} × {gpus}" for fabric, pictures, gpus in cells
    )

    def rows() -> Iterator[Sequence[str]]:
        for name, way in ANSWERS.items():
            found = (efficiency(works[pictures, gpus], gpus, fabric, gpu, way) for fabric, pictures, gpus in cells)
            yield name, *(f"{100 * one:.0f} %" for one in found)

    table(f"answer; pictures × GPUs | {head}", rows())


def print_sensitivity(works: Mapping[tuple[int, int], Work]) -> None:
    """Print how much the result hangs on what was assumed, where an assumption is another."""
    ways = {
        "as it is": Way(),
        "with a fast layer and sums": ANSWERS["+ sums in place of the gather"],
    }
    print(
        "\nPredicted efficiency on 64 GPUs, 1 picture a GPU, where an assumption is another (InfiniBand if not said)."
    )
    plain, fast, slow = Gpu(), ETHERNET.hop / 4, ETHERNET.hop * 4
    on_infiniband = {
        "as assumed": plain,
        "convolutions reach 0.25 of the peak": Gpu(attained=plain.attained / 2),
        "convolutions reach 0.8 of the peak": Gpu(attained=0.8),
        "kernels reach 0.5 of the memory's bandwidth": Gpu(memory_attained=0.5),
        "kernels reach 0.95 of the memory's bandwidth": Gpu(memory_attained=0.95),
        "the shortest kernel takes 5 µs": Gpu(kernel=2 * plain.kernel),
        "the host launches twice as fast": Gpu(launch=plain.launch / 2, collective=plain.collective / 2),
        "the host launches half as fast": Gpu(launch=2 * plain.launch, collective=2 * plain.collective),
        "ranks jitter by 1 %": Gpu(jitter=plain.jitter / 2),
        "ranks jitter by 10 %": Gpu(jitter=5 * plain.jitter),
    }
    on_ethernet = {
        "Ethernet, as assumed": ETHERNET,
        f"Ethernet, {1e6 * fast:.0f} µs more a hop": replace(ETHERNET, hop=fast),
        f"Ethernet, {1e6 * slow:.0f} µs more a hop": replace(ETHERNET, hop=slow),
    }
    assumed = {name: (gpu, INFINIBAND) for name, gpu in on_infiniband.items()}
    assumed |= {name: (plain, fabric) for name, fabric in on_ethernet.items()}

    def rows() -> Iterator[Sequence[str]]:
        for name, (gpu, fabric) in assumed.items():
            found = [efficiency(works[1, 64], 64, fabric, gpu, way) for way in ways.values()]
            alone = predict(works[1, 1], 1, fabric, gpu).total()
            yield name, f"{1e3 * alone:.0f}", *(f"{100 * one:.0f} %" for one in found)

    table("assumption | ms of a step on one GPU | " + " | ".join(ways), rows())


def print_measured() -> None:
    """Time a small step here, alone and on two ranks, beside what its terms foretell."""
    width, height = DEMO.source
    print(
        f"\nMeasured here (gloo, one thread a rank; `tiny`, {DEMO_PICTURES} pictures of {width}×{height} a rank), least"
    )
    print(
        f"and median of {DEMO_STEPS} steps, milliseconds. Foretold: the second row's least and the collectives' terms."
    )
    size = [str(one) for one in (DEMO_STEPS, DEMO_PICTURES, width, height)]
    words = [str(PROJECT / "benchmarks/timed_step.py"), *size]
    alone, layers = (json.loads(output_of_first_rank([*words, ranks], 1))["step"] for ranks in ("1", "2"))
    loopback = json.loads(output_of_first_rank([*words, "2"], 2))
    sent = sent_in_step(DEMO.networks(), 2, 2 * DEMO_PICTURES)
    foretold = layers[0] + _on_loopback(sent, loopback)
    rows = [
        ("one rank alone", alone, None),
        ("one of two ranks, nothing sent", layers, None),
        ("two ranks, loopback", loopback["step"], foretold),
    ]
    if os.geteuid() == 0:
        with slow_hosts(SLOW_MEGABITS) as hosts:
            slow = json.loads(output_of_first_rank([*words, "2"], 2, hosts))
        # Of two ranks, each sends the whole of what it sums or gathers, once.
        carried = 8 * sent.total() / (SLOW_MEGABITS * 1e6)
        rows.append((f"two ranks, a link of {SLOW_MEGABITS} Mbit/s", slow["step"], foretold + carried))
    milliseconds = [
        (name, *(f"{1e3 * one:.1f}" for one in measured), "" if told is None else f"{1e3 * told:.1f}")
        for name, measured, told in rows
    ]
    table("step | least | median | foretold", iter(milliseconds))


def _on_loopback(sent: Sent, measured: Mapping[str, Sequence[float]]) -> float:
    """Return the seconds of a step's collectives: one of each kind was timed, the least time of each counts."""
    gradients = next(seconds for name, seconds in measured.items() if name.endswith(f" {sum(sent.gradients)}"))
    reduce, gather = measured[f"all_reduce {SMALL_BYTES}"], measured[f"all_gather {SMALL_BYTES}"]
    return len(sent.gathered) * gather[0] + (len(sent.reduced) + 1) * reduce[0] + gradients[0]


def print_loader(works: Mapping[tuple[int, int], Work], gpu: Gpu) -> None:
    """Print how many reading processes a GPU needs: their time for a picture is measured, the step's predicted."""
    print(
        "\nReading: milliseconds of one process here (least of 15) for a source picture with its label, from PNG to a"
    )
    print("tensor (a drawn street with noise, of GTA5's size), and what one GPU's predicted steps then need of it.")
    picture, labels = draw_scene("source", "train", 0, seed=0, width=1914, height=1052)
    noise = np.random.default_rng(0).normal(0, 4, picture.shape)
    packed = encode_png(np.clip(picture + noise, 0, 255).astype(np.uint8)), encode_png(labels)
    smaller = tuple(
        encode_png(one)
        for one in (resize_image(decode_image(packed[0]), (1280, 720)), resize_label(labels, (1280, 720)))
    )
    cv2.setNumThreads(1)

    def rows() -> Iterator[Sequence[str]]:
        for name, files in (("packed as it is, 1914×1052", packed), ("packed at 1280×720", smaller)):
            seconds = min(_seconds_to_read(*files) for _ in range(15))
            size = sum(len(file) for file in files) / 1e6
            rates = [pictures / predict(works[pictures, 1], 1, INFINIBAND, gpu).total() for pictures in PICTURES]
            needed = [f"{seconds * rate:.1f}, {size * rate:.0f} MB/s" for rate in rates]
            yield name, f"{size:.1f}", f"{1e3 * seconds:.0f}", f"{1 / seconds:.0f}", *needed

    needs = " | ".join(f"processes, disk: {pictures} a GPU" for pictures in PICTURES)
    table(f"picture | MB | ms | pictures/s | {needs}", rows())


def _seconds_to_read(picture: bytes, label: bytes) -> float:
    begin = time.perf_counter()
    resize_image(decode_image(picture), (1280, 720))
    resize_label(decode_label(label), (1280, 720))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
