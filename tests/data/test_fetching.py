"""Shards are fetched before they are needed, in the order in which they are, as far as there is room."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from esl_dist.data.cache import Cache
from esl_dist.data.fetching import fetching_ahead
from esl_dist.data.sampling import Wanted, as_they_are
from esl_dist.data.shards import ShardReader, open_shards, shard_name
from tests.builders import drawn_shards
from tests.far_servers import FarServer, far_server

SHARDS, IN_A_SHARD, SHARD_BYTES = 6, 2, 10_240
ORDER = [3, 0, 5, 1, 2, 4]


@pytest.fixture
def near(tmp_path: Path) -> ShardReader:
    return drawn_shards(tmp_path / "there", SHARDS * IN_A_SHARD, IN_A_SHARD)


@pytest.fixture
def far(near: ShardReader) -> Iterator[FarServer]:
    with far_server(Path(near.folder)) as server:
        yield server


def wanted() -> Iterator[list[Wanted]]:
    """Yield batches of both samples of a shard, shard after shard in `ORDER`."""
    return as_they_are([IN_A_SHARD * number, IN_A_SHARD * number + 1] for number in ORDER)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetched(far: FarServer) -> list[int]:
    """Return the shards that were fetched, in their order."""
    return [int(name[6:12]) for name in far.tars()]


def held(near: ShardReader, cache: Cache) -> set[int]:
    return {number for number, one in enumerate(near.index.shards) if (cache.folder / one.sha256).exists()}


def test_shards_are_fetched_in_the_order_in_which_they_are_needed(far: FarServer, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10**9, 1)
    reader = open_shards(far.url, cache=cache)
    order = wanted()
    with fetching_ahead(order, [reader], cache):
        wait_for(lambda: len(fetched(far)) == SHARDS)
    assert fetched(far) == ORDER
    assert list(order) == list(wanted()), "who reads takes the batches itself"


def test_no_more_is_fetched_than_there_is_room_for_until_batches_have_been_received(
    near: ShardReader, far: FarServer, tmp_path: Path
) -> None:
    index = (Path(near.folder) / "index.json").stat().st_size
    cache = Cache(tmp_path / "cache", 3 * SHARD_BYTES + index, 1)
    reader = open_shards(far.url, cache=cache)
    with fetching_ahead(wanted(), [reader], cache) as note_received:
        for received in range(SHARDS):
            note_received(received)
            needed = set(ORDER[received : received + 3])
            wait_for(lambda now=needed: now <= held(near, cache))
    assert fetched(far) == ORDER
    assert set(far.tars().values()) == {1}, "what is about to be needed does not go"


def test_a_folder_that_is_removed_or_full_for_a_while_ends_no_fetching_ahead(
    near: ShardReader,
    far: FarServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache, full = Cache(tmp_path / "cache", 10**9, 1), tmp_path / "full"
    reader = open_shards(far.url, cache=cache)
    write = os.pwrite

    def write_if_there_is_room(*words: Any) -> int:
        if full.exists():
            (tmp_path / "refused").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*words)

    monkeypatch.setattr("esl_dist.data.fetching.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(os, "pwrite", write_if_there_is_room)
    with fetching_ahead(wanted(), [reader], cache) as note_received:
        wait_for(lambda: len(held(near, cache)) == SHARDS)
        full.touch()
        shutil.rmtree(cache.folder)
        note_received(1)
        wait_for((tmp_path / "refused").exists)
        full.unlink()
        wait_for(lambda: held(near, cache) >= set(ORDER[1:]))
        [notice] = cache.folder.glob("needed-*")
        assert near.index.shards[ORDER[1]].sha256 in notice.read_text()
    assert "Traceback" not in capfd.readouterr().err


def test_the_process_ends_with_the_block_and_with_its_parent(far: FarServer, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10**9, 1)
    reader = open_shards(far.url, cache=cache)
    before = set(psutil.Process().children())
    with fetching_ahead(wanted(), [reader], cache):
        [process] = set(psutil.Process().children()) - before
    assert not process.is_running()

    report, told = os.pipe()
    parent = os.fork()
    if parent == 0:
        with fetching_ahead(wanted(), [reader], cache):
            os.write(told, str(psutil.Process().children()[0].pid).encode())
            os._exit(0)
    os.waitpid(parent, 0)
    orphan = int(os.read(report, 20))
    os.close(report)
    os.close(told)
    wait_for(lambda: not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE)


def test_a_shard_that_is_lost_and_a_server_that_is_gone_stop_no_one(
    near: ShardReader, far: FarServer, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", 10**9, 1)
    (far.folder / shard_name(ORDER[1])).rename(tmp_path / "lost")
    reader = open_shards(far.url, False, cache)
    with fetching_ahead(wanted(), [reader], cache) as note_received:
        wait_for(lambda: len(held(near, cache)) == SHARDS - 1)
        far.stop()
        note_received(1)
        assert reader.read(IN_A_SHARD * ORDER[0], "image")
    assert held(near, cache) == set(ORDER) - {ORDER[1]}
    far.start()


def test_what_was_received_before_the_process_looked_is_needed_no_more(
    near: ShardReader, far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache", 10**9, 1)
    reader = open_shards(far.url, cache=cache)
    monkeypatch.setattr("esl_dist.data.fetching.begin_forked", lambda parent: wait_for((tmp_path / "begin").exists))
    with fetching_ahead(wanted(), [reader], cache) as note_received:
        note_received(2)
        (tmp_path / "begin").touch()
        wait_for(lambda: len(held(near, cache)) == SHARDS - 2)
        [notice] = cache.folder.glob("needed-*")
        needs = json.loads(notice.read_text())
    assert fetched(far) == ORDER[2:]
    assert needs == {near.index.shards[number].sha256: batches for batches, number in enumerate(ORDER[2:])}
