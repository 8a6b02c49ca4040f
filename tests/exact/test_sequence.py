"""The sequence of samples is the same for any number of ranks and workers, any cut into shards, any restart."""

import json
import random
from collections.abc import Sequence
from itertools import chain, islice, product
from pathlib import Path

import pytest

from esl_dist.data.sampling import endless_order, rank_batches
from tests.builders import drawn_samples, write_uneven_shards
from tests.grids import grid
from tests.on_ranks import PROJECT, RankServer

pytestmark = pytest.mark.exact

BATCH = 12
SOURCE, TARGET = 31, 17
STEPS = 9
"""Three epochs and a half of the source, six of the target."""

SEED, WINDOW = 5, 8
LATE_STEP = 1000

Sequences = dict[str, list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of the same samples in shards of uneven sizes, cut in two ways."""
    folder = tmp_path_factory.mktemp("data")
    for domain, count in (("source", SOURCE), ("target", TARGET)):
        samples = drawn_samples(count, 16, 12)
        write_uneven_shards(folder / f"one way/{domain}", samples, [1, 7, 2])
        write_uneven_shards(folder / f"other way/{domain}", samples, [5])
    return {"one way": folder / "one way", "other way": folder / "other way"}


def reading_words(folder: Path, notes: Path, steps: range, workers: int) -> list[str]:
    words = [f"source.path={folder}/source", f"target.path={folder}/target", f"batch_size={BATCH}", f"seed={SEED}"]
    words += [f"loader.workers={workers}", f"loader.shuffle_window={WINDOW}", f"experiments={notes.parent}", "name=r"]
    return [str(steps.start), str(steps.stop), str(notes), *words]


def read(server: RankServer, folder: Path, notes: Path, steps: range, ranks: int, workers: int) -> Sequences:
    """Return the keys of some steps in the order of the global batches, by domain."""
    codes = server.run("tests/exact/read_sequence.py", reading_words(folder, notes, steps, workers), ranks)
    assert codes == [0] * ranks, server.log.read_text()
    by_rank = [json.loads(Path(f"{notes}.{rank}").read_text()) for rank in range(ranks)]
    keys = list(zip(*by_rank, strict=True))
    return {domain: [key for step in keys for part in step for key in part[domain]] for domain in ("source", "target")}


@pytest.fixture(scope="module")
def whole(server: RankServer, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Sequences:
    """Return the sequences that one process without workers reads from the first step on."""
    return read(server, data["one way"], tmp_path_factory.mktemp("whole") / "notes", range(STEPS), 1, 0)


def part(sequences: Sequences, first: int, last: int) -> Sequences:
    return {domain: keys[first * BATCH : last * BATCH] for domain, keys in sequences.items()}


def epochs(keys: Sequence[str], size: int) -> list[list[str]]:
    return [sorted(keys[start : start + size]) for start in range(0, len(keys) - size + 1, size)]


def test_every_epoch_has_every_sample_once_and_runs_into_the_next(whole: Sequences) -> None:
    every = {"source": SOURCE, "target": TARGET}
    for domain, size in every.items():
        names = sorted(f"scene_{number:03d}" for number in range(size))
        found = epochs(whole[domain], size)
        assert found == [names] * (STEPS * BATCH // size)
        assert len(found) > 2
    assert whole["source"][:SOURCE] != whole["source"][SOURCE : 2 * SOURCE], "epochs differ in their order"


@pytest.mark.parametrize(("ranks", "workers"), grid(product([1, 2, 3, 4], [0, 1, 3]), stay=[(2, 0), (3, 1)]))
def test_the_sequence_is_the_same_for_any_ranks_workers_shards_and_restarts(
    server: RankServer, data: dict[str, Path], whole: Sequences, tmp_path: Path, ranks: int, workers: int
) -> None:
    first = random.Random(10 * ranks + workers).randrange(1, STEPS - 1)
    for way, folder in data.items():
        found = read(server, folder, tmp_path / way, range(first, STEPS), ranks, workers)
        assert found == part(whole, first, STEPS), f"from step {first} on, shards cut {way}"


@pytest.mark.parametrize("stop", grid(range(1, STEPS), stay=[3, 6]))
def test_after_a_stop_at_any_step_other_ranks_and_workers_go_on_with_the_next_sample(
    server: RankServer, data: dict[str, Path], whole: Sequences, tmp_path: Path, stop: int
) -> None:
    ranks = [1, 2, 3, 4]
    before = read(server, data["one way"], tmp_path / "before", range(stop), ranks[stop % 4], stop % 2)
    after = read(server, data["one way"], tmp_path / "after", range(stop, STEPS), ranks[(stop + 1) % 4], (stop + 1) % 2)
    assert {domain: list(chain(before[domain], after[domain])) for domain in whole} == whole


@pytest.mark.parametrize(("ranks", "workers"), grid(product([1, 2], [0, 1]), stay=[(2, 1)]))
def test_going_on_at_a_late_step_reads_the_samples_of_the_next_steps_and_no_other_bytes(
    server: RankServer, data: dict[str, Path], tmp_path: Path, ranks: int, workers: int
) -> None:
    program = [str(tmp_path / "reads"), str(PROJECT / "tests/exact/read_sequence.py")]
    program += reading_words(data["one way"], tmp_path / "notes", range(LATE_STEP, LATE_STEP + 2), workers)
    job = server.start("tests/exact/note_reads.py", program, ranks)
    assert job.exit_codes() == [0] * ranks, job.output()
    for rank in range(ranks):
        reads = [json.loads(line) for line in Path(f"{tmp_path}/reads.{rank}").read_text().splitlines()]
        for domain, (name, size) in enumerate((("source", SOURCE), ("target", TARGET))):
            order = endless_order(size, WINDOW, SEED, domain, LATE_STEP * BATCH)
            next_batches = rank_batches(order, BATCH, 1, rank, ranks)
            found = [position for folder, position, kind in reads if folder == name and kind == "image"]
            wanted = 2 * BATCH // ranks
            # Workers read on.
            assert len(found) == wanted if workers == 0 else len(found) >= wanted
            assert found == list(islice(chain.from_iterable(next_batches), len(found)))
        labels = [position for folder, position, kind in reads if (folder, kind) == ("source", "label")]
        images = [position for folder, position, kind in reads if (folder, kind) == ("source", "image")]
        assert labels == [0, *images], "the first label tells that there are any"
        assert {(folder, kind) for folder, _, kind in reads} == {
            ("source", "image"),
            ("source", "label"),
            ("target", "image"),
        }
