"""A training whose shards come from far away ends with the bits of one whose shards are here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_USER_ERROR
from esl_dist.data.shard_index import read_index
from tests.builders import drawn_samples, write_shards
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    everything_learned,
    newest_step,
    run_in,
    train,
    training_words,
)
from tests.far_servers import FarServer, far_server, s3_server
from tests.grids import grid
from tests.on_ranks import CHANGED, RankServer
from tests.programs import small_town, succeed

pytestmark = pytest.mark.exact

STEPS = 4
IMPATIENT = "from esl_dist.data import remote; remote.FIRST_PAUSE_SECONDS = 0.01"
WORDS = ("batch_size=2", f"checkpoints.every={STEPS}")


@pytest.fixture(scope="module")
def near(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return, by the number of ranks, runs whose shards were here."""
    folder = tmp_path_factory.mktemp("near")
    runs = {ranks: run_in(folder, f"ranks{ranks}") for ranks in (1, 2)}
    for ranks, run in runs.items():
        train(server, town, run, ranks, *WORDS, f"steps={STEPS}")
    return runs


@pytest.fixture
def far(town: Path) -> Iterator[FarServer]:
    with far_server(town) as started:
        yield started


def words(far: FarServer, run: Path, *more: str) -> list[str]:
    """Return the words of a training that reads from a server, into a cache beside its run."""
    cache = f"cache.folder={run.parent / 'cache'}"
    return [IMPATIENT, TRAIN, *training_words(Path("far"), run, *WORDS, *addresses(far.url), cache, *more)]


def addresses(place: str) -> list[str]:
    return [f"source.path={place}/source_train", f"target.path={place}/target_train"]


def test_two_ranks_with_workers_fetch_each_shard_once_and_learn_the_same(
    server: RankServer, far: FarServer, near: dict[int, Path], tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    job = server.start(CHANGED, words(far, run, f"steps={STEPS}", "loader.workers=2"), 2)
    assert job.exit_codes() == [0, 0], job.output()
    assert_same_bits(everything_learned(run), everything_learned(near[2]))
    expected = {
        f"{split}/{shard.name}": 1
        for split in ("source_train", "target_train")
        for shard in read_index(far.folder / split).shards
    }
    assert far.tars() == expected
    assert far.asked["GET source_train/index.json"] == 1
    assert f"{far.url}/source_train: toytown source_train, 6 samples" in job.output()


def test_a_cache_of_three_shards_a_broken_connection_and_a_restart_do_not_show(
    server: RankServer, far: FarServer, near: dict[int, Path], tmp_path: Path
) -> None:
    run, far.cut = run_in(tmp_path), 3
    limit = 3 * max(shard.size for shard in read_index(far.folder / "source_train").shards)
    for steps, workers in ((2, 1), (STEPS, 0)):
        now = (f"steps={steps}", f"loader.workers={workers}", f"cache.gigabytes={limit / 1e9:.9f}")
        job = server.start(CHANGED, words(far, run, *now), 1)
        assert job.exit_codes() == [0], job.output()
        kept = [file.stat().st_size for file in (run.parent / "cache").iterdir() if len(file.name) == 64]
        assert sum(kept) <= limit
    assert far.cut == 0
    assert_same_bits(everything_learned(run), everything_learned(near[1]))


def test_a_training_that_is_killed_while_it_fetches_goes_on_as_if_it_had_not_been(
    server: RankServer, far: FarServer, near: dict[int, Path], tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    pieces = "; from esl_dist.data import far_shards; far_shards.PART_BYTES = 1000"
    changed = [IMPATIENT + pieces, *words(far, run, f"steps={STEPS}", "loader.workers=1")[1:]]
    held = {"target_train/shard-000001.tar", "target_train/shard-000003.tar"}
    far.hold = held
    job = server.start(CHANGED, changed, 1)
    job.wait_until(lambda: any((run.parent / "cache").glob("*.partial")) and not held.isdisjoint(far.tars()))
    job.kill_all()
    far.hold = set()
    job.exit_codes()
    job = server.start(CHANGED, changed, 1)
    assert job.exit_codes() == [0], job.output()
    assert_same_bits(everything_learned(run), everything_learned(near[1]))
    assert not list((run.parent / "cache").glob("*.partial"))


def test_a_server_that_is_gone_ends_a_training_only_when_something_is_needed_of_it(
    server: RankServer, far: FarServer, near: dict[int, Path], tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    job = server.start(CHANGED, words(far, run, f"steps={STEPS}", "loader.workers=1"), 1)
    job.wait_until(lambda: len(far.tars()) == 12)
    far.stop()
    assert job.exit_codes() == [0], job.output()
    assert_same_bits(everything_learned(run), everything_learned(near[1]))
    other = run_in(tmp_path, "other")
    job = server.start(CHANGED, words(far, other, "steps=1"), 2)
    assert job.exit_codes() == [EXIT_USER_ERROR] * 2, job.output()
    assert f"{far.url}/source_train/index.json: cannot be fetched (" in job.output()
    assert "after 6 attempts" in job.output()
    assert "Traceback" not in job.output()
    assert not other.exists()
    far.start()


@pytest.mark.parametrize("workers", grid([0, 1], stay=[1]))
def test_a_shard_that_is_damaged_there_is_named_or_replaced_as_one_here(
    server: RankServer, far: FarServer, tmp_path: Path, workers: int
) -> None:
    damaged = "source_train/shard-000002.tar"
    far.damage = lambda name, content: bytes(len(content)) if name == damaged else content
    run, now = run_in(tmp_path), ("steps=3", f"loader.workers={workers}")
    job = server.start(CHANGED, words(far, run, *now), 1)
    assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    lines = [line for line in job.output().splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert f"{far.url}/{damaged}, sample " in lines[0]
    assert "checksum differs" in lines[0]
    job = server.start(CHANGED, words(far, run_in(tmp_path, "lenient"), *now, "loader.skip_corrupt=0.2"), 1)
    assert job.exit_codes() == [0], job.output()
    assert "the next whole sample takes its place" in job.output()
    assert "1 corrupt source samples were replaced" in job.output()


def test_an_index_that_was_changed_is_refused_at_the_next_start(server: RankServer, tmp_path: Path) -> None:
    there = small_town(tmp_path / "town", source=3, target=3)
    with far_server(there) as far:
        run = run_in(tmp_path)
        job = server.start(CHANGED, words(far, run, "steps=1"), 1)
        assert job.exit_codes() == [0], job.output()
        write_shards(there / "target_train", drawn_samples(3, 64, 32), 1, image_size=(64, 32), label_size=(64, 32))
        job = server.start(CHANGED, words(far, run, "steps=2"), 1)
        assert job.exit_codes() == [EXIT_USER_ERROR], job.output()
    assert "this run was begun on other shards than those it is given now" in job.output()
    assert newest_step(run) == 1


def test_the_loop_reads_from_a_bucket_and_keeps_no_secret(
    server: RankServer, town: Path, near: dict[int, Path], tmp_path: Path
) -> None:
    with s3_server(town, "town") as environment:
        secret = environment["AWS_SECRET_ACCESS_KEY"]
        cache, run = f"cache.folder={tmp_path / 'cache'}", run_in(tmp_path)
        there = training_words(town, run, *WORDS, *addresses("s3://town"), cache, f"steps={STEPS}")
        job = server.start(TRAIN, there, 1, environment)
        assert job.exit_codes() == [0], job.output()
        assert_same_bits(everything_learned(run), everything_learned(near[1]))
        outputs = job.output()
        labels, scores = tmp_path / "labels", tmp_path / "scores.json"
        for program, more in (
            ("launch/pseudo_label.py", ["target.path=s3://town/target_train", f"output={labels}", "workers=1"]),
            ("launch/evaluate.py", ["data.path=s3://town/target_val", f"output={scores}", "workers=0"]),
        ):
            job = server.start(program, [f"checkpoint={run}", cache, *more], 1, environment)
            assert job.exit_codes() == [0], job.output()
            outputs += job.output()
    assert secret not in outputs
    for file in (path for path in run.rglob("*") if path.is_file()):
        assert secret.encode() not in file.read_bytes()
    here = tmp_path / "here.json"
    succeed("launch/evaluate.py", f"checkpoint={run}", f"data.path={town}/target_val", f"output={here}", "workers=0")
    assert here.read_text() == scores.read_text()
