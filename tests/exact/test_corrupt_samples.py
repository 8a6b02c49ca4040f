"""A corrupt sample ends the training with shard and key or, where a share may be, is replaced, counted and reported."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.data.loading import LabelSource, Samples
from esl_dist.data.sampling import endless_order
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from tests.exact.ranks import RankServer
from tests.exact.shards import copied_shards, corrupt
from tests.exact.trainings import run_in, start_training, train, training_words

pytestmark = pytest.mark.exact

SIZE, BATCH, STEPS, WINDOW = 6, 4, 12, 8
DOMAINS = ("source", "target")
SKIP = "loader.skip_corrupt=0.2"
"""One of six samples, not two."""


def order(domain: str) -> list[int]:
    """Return the positions that the steps read, in the order of the global batches; epochs do not end with batches."""
    return list(islice(endless_order(SIZE, WINDOW, 0, DOMAINS.index(domain), 0), STEPS * BATCH))


def reader_of_first_step(domain: str, position: int) -> int:
    """Return which of two ranks reads a position that is in the first step."""
    return order(domain)[:BATCH].index(position) // (BATCH // 2)


def damaged(town: Path, folder: Path, domain: str, *positions: int, kind: str = "image.png") -> tuple[Path, list[str]]:
    copy = copied_shards(town, folder / "damaged")
    return copy, [corrupt(copy / f"{domain}_train", position, kind) for position in positions]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("domain", "kind"), [("source", "label.png"), ("target", "image.png")])
def test_a_corrupt_sample_ends_the_training_with_shard_and_key(
    server: RankServer, town: Path, tmp_path: Path, domain: str, kind: str, ranks: int, workers: int
) -> None:
    position = order(domain)[BATCH - 1]
    shards, [named] = damaged(town, tmp_path, domain, position, kind=kind)
    job = start_training(server, shards, run_in(tmp_path), ranks, f"steps={STEPS}", f"loader.workers={workers}")
    codes = job.exit_codes()
    message = f"{named}: the bytes of {kind} are not the packed ones"
    if ranks == 1:
        assert codes == [EXIT_USER_ERROR], job.output()
        assert f"error: {message}" in job.output()
    else:
        reader = reader_of_first_step(domain, position)
        assert codes[reader] == EXIT_USER_ERROR, job.output()
        assert codes[1 - reader] == EXIT_LOST_RANK, job.output()
        assert f"error (rank {reader}): {message}" in job.output()
    assert "Traceback" not in job.output()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 1)])
def test_a_corrupt_sample_that_may_be_is_replaced_counted_and_named(
    server: RankServer, town: Path, tmp_path: Path, domain: str, ranks: int, workers: int
) -> None:
    # Some batches end an epoch and begin the next with this sample, and are none with two corrupt samples.
    position = 2
    shards, [named] = damaged(town, tmp_path, domain, position)
    printed = train(
        server,
        shards,
        run_in(tmp_path),
        ranks,
        f"steps={STEPS}",
        SKIP,
        "checkpoints.every=100",
        f"loader.workers={workers}",
    )
    times = Counter(order(domain))[position]
    assert times == STEPS * BATCH // SIZE
    assert f"r: {times} corrupt {domain} samples were replaced; the warnings name them" in printed
    warning = f"warning: {named}: the bytes of image.png are not the packed ones"
    # Workers read ahead of the last step.
    assert printed.count(warning) == times if workers == 0 else printed.count(warning) >= times
    assert "corrupt samples" not in printed.replace(f"corrupt {domain} samples", "")


def keys_read(server: RankServer, shards: Path, notes: Path, ranks: int) -> dict[str, list[str]]:
    words = [*training_words(shards, run_in(notes.parent)), SKIP]
    codes = server.run("tests/exact/read_sequence.py", ["0", str(STEPS), str(notes), *words], ranks)
    assert codes == [0] * ranks, server.log.read_text()
    by_rank = [json.loads(Path(f"{notes}.{rank}").read_text()) for rank in range(ranks)]
    steps = list(zip(*by_rank, strict=True))
    return {domain: [key for step in steps for part in step for key in part[domain]] for domain in DOMAINS}


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_next_sample_stands_for_a_corrupt_one_and_the_others_keep_their_places(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    whole = keys_read(server, town, tmp_path / "whole", ranks)
    shards, _ = damaged(town, tmp_path, "source", SIZE - 1)
    keys = list(open_shards(town / "source_train").keys())
    found = keys_read(server, shards, tmp_path / "notes", ranks)
    assert found["target"] == whole["target"]
    assert found["source"] == [keys[0] if key == keys[SIZE - 1] else key for key in whole["source"]]
    assert found["source"] != whole["source"]


@pytest.mark.parametrize("kind", ["image.png", "label.png"])
def test_the_next_whole_sample_is_found_behind_other_corrupt_ones(town: Path, tmp_path: Path, kind: str) -> None:
    shards, _ = damaged(town, tmp_path, "source", 1, 2, SIZE - 1, kind=kind)
    reader = open_shards(shards / "source_train")
    labels = LabelSource(reader, next(iter(reader.index.class_sets.values())))
    samples = Samples(reader, None, labels, replace_corrupt=True)
    for position, stand_in in {0: 0, 1: 3, 2: 3, 3: 3, SIZE - 1: 0}.items():
        found, expected = samples[position], samples[stand_in]
        assert bool(found["replaced"]) == (position != stand_in)
        assert int(found["positions"]) == stand_in
        assert all(torch.equal(found[name], expected[name]) for name in ("images", "labels", "own_sizes"))


def test_where_every_sample_is_corrupt_there_is_no_next_one(town: Path, tmp_path: Path) -> None:
    shards, _ = damaged(town, tmp_path, "target", *range(SIZE))
    samples = Samples(open_shards(shards / "target_train"), None, replace_corrupt=True)
    with pytest.raises(UserError, match="every sample is corrupt; pack the data set again"):
        samples[3]


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_corrupt_samples_than_may_be_end_the_training_with_the_counts(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    shards, named = damaged(town, tmp_path, "target", 1, 4)
    job = start_training(server, shards, run_in(tmp_path), ranks, f"steps={STEPS}", SKIP)
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    expected = "epoch 0: 2 of 6 target samples are corrupt, more than loader.skip_corrupt=0.2 allows"
    assert job.output().count(expected) == ranks
    assert all(f"warning: {one}" in job.output() for one in named)
    assert "Traceback" not in job.output()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_shard_that_is_not_whole_stops_the_training_at_its_start(
    server: RankServer, town: Path, tmp_path: Path, ranks: int, damage: str
) -> None:
    shards = copied_shards(town, tmp_path / "damaged")
    last = sorted((shards / "target_train").glob("*.tar"))[-1]
    content = last.read_bytes()
    last.unlink()
    if damage == "truncated":
        last.write_bytes(content[:-512])
    job = start_training(server, shards, run_in(tmp_path), ranks, f"steps={STEPS}", SKIP)
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    found = "is missing" if damage == "missing" else f"has {len(content) - 512} bytes"
    assert job.output().count(f"{last}: {found}, the index says {len(content)}; pack the data set again") >= 1
    assert "Traceback" not in job.output()
    assert not (tmp_path / "snapshots").exists()
