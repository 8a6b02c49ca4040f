"""Corrupt samples and shards end the training with shard and key or, up to a share, are replaced, counted, reported."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import pytest
import torch

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.config import DOMAINS
from esl_dist.data.loading import LabelSource, Samples
from esl_dist.data.sampling import endless_order
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from esl_dist.runs.checkpoints import checkpoint_folder, load_checkpoint
from tests.exact.shards import copied_shards, corrupt
from tests.exact.trainings import run_in, start_training, train, training_words
from tests.grids import grid
from tests.on_ranks import RankServer

pytestmark = pytest.mark.exact

SIZE, BATCH, STEPS, WINDOW = 6, 4, 12, 8
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


@pytest.mark.parametrize(
    ("member", "ranks", "workers"),
    grid(
        product([("source", "label.png"), ("target", "image.png")], [1, 2], [0, 1]),
        stay=[(("source", "label.png"), 2, 1), (("target", "image.png"), 1, 0)],
    ),
)
def test_a_corrupt_sample_ends_the_training_with_shard_and_key(
    server: RankServer, town: Path, tmp_path: Path, member: tuple[str, str], ranks: int, workers: int
) -> None:
    domain, kind = member
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


def test_a_corrupt_label_that_one_of_two_ranks_meets_while_it_counts_classes_ends_both(
    server: RankServer, town: Path, tmp_path: Path
) -> None:
    shards, [named] = damaged(town, tmp_path, "source", 1, kind="label.png")
    # As older programs packed it: without counts.
    file = shards / "source_train" / INDEX_NAME
    index = json.loads(file.read_text())
    del index["label_pixels"]
    file.write_text(json.dumps(index))
    rare = ("source.rare_classes.temperature=0.5", "source.rare_classes.least_pixels=1")
    job = start_training(server, shards, run_in(tmp_path), 2, f"steps={STEPS}", *rare)
    assert job.exit_codes() == [EXIT_LOST_RANK, EXIT_USER_ERROR], job.output()
    message = f"{named}: the bytes of label.png are not the packed ones"
    assert f"error (rank 1): {message}" in job.output()
    assert f"error (rank 0): rank 1 ended: {message}" in job.output()
    assert "Traceback" not in job.output()


@pytest.mark.parametrize(
    ("domain", "ranks", "workers"),
    grid(
        [(domain, *job) for domain in DOMAINS for job in ((1, 0), (2, 0), (2, 1))],
        stay=[("source", 2, 1), ("target", 1, 0)],
    ),
)
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


@pytest.mark.parametrize("ranks", grid([1, 2], stay=[2]))
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
        assert all(torch.equal(found[name], expected[name]) for name in ("pictures", "labels", "own_sizes"))


def test_where_every_sample_is_corrupt_there_is_no_next_one(town: Path, tmp_path: Path) -> None:
    shards, _ = damaged(town, tmp_path, "target", *range(SIZE))
    samples = Samples(open_shards(shards / "target_train"), None, replace_corrupt=True)
    with pytest.raises(UserError, match="every sample is corrupt; pack the data set again"):
        samples[3]


@pytest.mark.parametrize("ranks", grid([1, 2], stay=[2]))
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


def test_the_counts_go_on_over_a_restart_on_other_ranks(server: RankServer, town: Path, tmp_path: Path) -> None:
    position, run = 2, run_in(tmp_path)
    shards, _ = damaged(town, tmp_path, "source", position)
    stop = STEPS // 2
    before, whole = (order("source")[: steps * BATCH].count(position) for steps in (stop, STEPS))
    assert 0 < before < whole
    for steps, ranks, times in ((stop, 2, before), (STEPS, 1, whole)):
        printed = train(server, shards, run, ranks, f"steps={steps}", SKIP)
        assert f"r: {times} corrupt source samples were replaced; the warnings name them" in printed


def test_the_largest_share_of_an_epoch_is_held_over_a_restart(server: RankServer, town: Path, tmp_path: Path) -> None:
    epoch, run = order("target")[:SIZE], run_in(tmp_path)
    shards, _ = damaged(town, tmp_path, "target", epoch[0], epoch[-1])
    train(server, shards, run, 1, "steps=1", SKIP)
    job = start_training(server, shards, run, 2, f"steps={STEPS}", SKIP)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    assert "epoch 0: 2 of 6 target samples are corrupt, more than loader.skip_corrupt=0.2 allows" in job.output()


@dataclass(frozen=True)
class Broken:
    """A copy of the town with a shard that is not whole: how messages name it, and what it costs."""

    shards: Path
    damage: str
    lost: list[int]


def with_broken_shard(town: Path, folder: Path, domain: str, how: str) -> Broken:
    """Leave out the last shard of a domain, or cut it inside its last sample."""
    copy = copied_shards(town, folder / "damaged")
    reader = open_shards(copy / f"{domain}_train")
    shard = reader.index.shards[-1]
    path = reader.folder / shard.name
    if how == "missing":
        path.unlink()
        found, lost = "is missing", len(shard.samples)
    else:
        size = shard.samples[-1].members["image.png"][0] + 1
        os.truncate(path, size)
        found, lost = f"has {size} bytes", 1
    damage = f"{path}: {found}, the index says {shard.size}; {lost} of its {len(shard.samples)} samples are lost"
    assert lost < SIZE
    return Broken(copy, f"{damage}, {reader.key(SIZE - lost)!r} first", list(range(SIZE - lost, SIZE)))


BREAKS = ["missing", "truncated"]


@pytest.mark.parametrize(("how", "ranks"), grid(product(BREAKS, [1, 2]), stay=[("missing", 2), ("truncated", 1)]))
def test_a_broken_shard_stops_the_training_at_its_start_with_the_first_key_that_is_lost(
    server: RankServer, town: Path, tmp_path: Path, ranks: int, how: str
) -> None:
    broken = with_broken_shard(town, tmp_path, "target", how)
    job = start_training(server, broken.shards, run_in(tmp_path), ranks, f"steps={STEPS}")
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    assert f"{broken.damage}; pack the data set again" in job.output()
    assert "Traceback" not in job.output()
    assert not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize(
    ("how", "domain", "job"),
    grid(
        [(how, *job) for how in BREAKS for job in (("source", (1, 0)), ("source", (2, 1)), ("target", (2, 0)))],
        stay=[("missing", "target", (2, 0))],
    ),
)
def test_the_samples_of_a_broken_shard_that_may_be_are_replaced_and_counted(
    server: RankServer, town: Path, tmp_path: Path, how: str, domain: str, job: tuple[int, int]
) -> None:
    ranks, workers = job
    broken = with_broken_shard(town, tmp_path, domain, how)
    share = f"loader.skip_corrupt={len(broken.lost) / SIZE + 0.01}"
    words = (f"steps={STEPS}", share, f"loader.workers={workers}", "checkpoints.every=100")
    printed = train(server, broken.shards, run_in(tmp_path), ranks, *words)
    assert printed.count(f"warning: {broken.damage}; whole samples stand for them") == 1
    times = sum(Counter(order(domain))[position] for position in broken.lost)
    assert times == len(broken.lost) * STEPS * BATCH // SIZE
    assert f"r: {times} corrupt {domain} samples were replaced; the warnings name them" in printed


@pytest.mark.parametrize("ranks", grid([1, 2], stay=[2]))
def test_more_samples_lost_with_their_shards_than_may_be_stop_the_training_at_its_start(
    server: RankServer, town: Path, tmp_path: Path, ranks: int
) -> None:
    broken = with_broken_shard(town, tmp_path, "source", "missing")
    job = start_training(server, broken.shards, run_in(tmp_path), ranks, f"steps={STEPS}", "loader.skip_corrupt=0.1")
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    lost = f"over all shards {len(broken.lost)} of 6 samples are lost, more than loader.skip_corrupt=0.1 allows"
    assert f"{broken.damage}; {lost}: pack the data set again" in job.output()
    assert not (tmp_path / "snapshots").exists()


def test_a_broken_shard_does_not_change_which_shards_these_are(server: RankServer, town: Path, tmp_path: Path) -> None:
    """A run that was begun on whole shards goes on with what is left of them."""
    run = run_in(tmp_path)
    train(server, town, run, 2, "steps=3")
    broken = with_broken_shard(town, tmp_path, "source", "truncated")
    assert "r: " in train(server, broken.shards, run, 2, f"steps={STEPS}", SKIP)


@pytest.mark.parametrize(
    ("place", "domain", "ranks"),
    grid(product([SIZE - 1, SIZE], DOMAINS, [1, 2]), stay=[(SIZE - 1, "source", 2)]),
)
def test_samples_of_several_passes_and_ranks_are_counted_in_their_epoch(
    server: RankServer, town: Path, tmp_path: Path, place: int, domain: str, ranks: int
) -> None:
    """The second step holds the last sample of an epoch in its first pass, the next epoch's first in its second one."""
    position, run = order(domain)[place], run_in(tmp_path)
    shards, _ = damaged(town, tmp_path, domain, position)
    train(server, shards, run, ranks, "steps=2", "accumulate=2", SKIP)
    epochs = [number // SIZE for number in range(2 * BATCH) if order(domain)[number] == position]
    expected = {"epochs": epochs[-1], "in_epoch": epochs.count(epochs[-1]), "totals": len(epochs)}
    found = load_checkpoint(checkpoint_folder(run, 2)).training["corrupt_samples"]
    assert {key: counts[DOMAINS.index(domain)] for key, counts in found.items()} == expected
