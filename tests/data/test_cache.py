"""A cache that processes share: each file fetched once, whole or not there, in a limit, whoever is killed."""

import errno
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from esl_dist.data import cache as cached
from esl_dist.data.cache import Cache, NoRoomError, Notice, fetch_ahead, opened
from esl_dist.errors import UserError

SIZE = 1000
LONG = 60.0
"""Seconds after which a test that waits has failed."""


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def fills(number: int) -> Callable[[int], None]:
    def fill(descriptor: int) -> None:
        os.pwrite(descriptor, content(number), 0)

    return fill


def read(cache: Cache, number: int, fill: Callable[[int], None] | None = None) -> bytes:
    descriptor = opened(cache, name(number), SIZE, fill or fills(number), "http://there/x")
    with open(descriptor, "rb") as file:
        return file.read()


def ahead(cache: Cache, number: int, need: int) -> bool:
    return fetch_ahead(cache, name(number), SIZE, fills(number), need)


def kept(cache: Cache) -> set[int]:
    return {number for number in range(10) if (cache.folder / name(number)).exists()}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Return a cache with room for three files."""
    return Cache(tmp_path / "cache", 3 * SIZE, 1)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def child(function: Callable[[], None]) -> Iterator[int]:
    """Run a function in a process that is killed at the end of the block, if not before."""
    process = os.fork()
    if process == 0:
        try:
            function()
        finally:
            os._exit(0)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_several_that_want_a_file_at_once_have_it_fetched_once(cache: Cache) -> None:
    fetches, begun, go_on = list[int](), threading.Event(), threading.Event()

    def fill(descriptor: int) -> None:
        fetches.append(descriptor)
        begun.set()
        assert go_on.wait(LONG)
        fills(1)(descriptor)

    results = list[bytes]()
    threads = [threading.Thread(target=lambda: results.append(read(cache, 1, fill))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(LONG)
    assert not ahead(cache, 1, 0), "nobody fetches ahead what another fetches"
    assert kept(cache) == set(), "a file that is being fetched is not there"
    go_on.set()
    for thread in threads:
        thread.join(LONG)
    assert results == [content(1)] * 4
    assert len(fetches) == 1


def test_a_fetch_that_is_killed_leaves_no_half_file_and_no_lock(cache: Cache) -> None:
    def half_and_wait() -> None:
        def fill(descriptor: int) -> None:
            os.pwrite(descriptor, content(9)[: SIZE // 2], 0)
            time.sleep(LONG)

        read(cache, 1, fill)

    partial = cache.folder / f"{name(1)}.partial"
    with child(half_and_wait):
        wait_for(lambda: partial.exists() and partial.read_bytes()[:1] == content(9)[:1])
    assert kept(cache) == set()
    assert read(cache, 1) == content(1)
    assert not partial.exists()


def test_what_a_killed_fetch_left_of_another_file_makes_room(cache: Cache) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / f"{name(1)}.partial").write_bytes(bytes(3 * SIZE))
    assert read(cache, 2) == content(2)
    assert not (cache.folder / f"{name(1)}.partial").exists()


def test_a_fetch_that_fails_leaves_nothing_and_the_next_begins_anew(cache: Cache) -> None:
    def fill(descriptor: int) -> None:
        os.pwrite(descriptor, b"half", 0)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        read(cache, 1, fill)
    assert not list(cache.folder.glob(f"{name(1)}*"))
    assert read(cache, 1) == content(1)


def test_a_file_of_another_size_is_fetched_again(cache: Cache) -> None:
    read(cache, 1)
    (cache.folder / name(1)).write_bytes(b"cut")
    assert read(cache, 1) == content(1)


def test_what_was_used_longest_ago_makes_room_and_what_is_not_of_the_cache_stays(cache: Cache) -> None:
    for number in (1, 2, 3):
        read(cache, number)
        os.utime(cache.folder / name(number), (number, number))
    (cache.folder / "thesis.txt").write_bytes(bytes(10 * SIZE))
    read(cache, 1)
    assert read(cache, 4) == content(4)
    assert kept(cache) == {1, 3, 4}
    assert (cache.folder / "thesis.txt").exists()


def test_what_is_needed_last_makes_room_and_never_for_what_is_needed_later(cache: Cache) -> None:
    for number in (1, 2, 3):
        read(cache, number)
    one, other = Notice(cache), Notice(cache)
    one.say({name(1): 0, name(2): 8})
    other.say({name(2): 5, name(3): 6})
    with pytest.raises(NoRoomError):
        ahead(cache, 4, 7)
    assert kept(cache) == {1, 2, 3}
    assert not list(cache.folder.glob("*.partial"))
    assert ahead(cache, 4, 5)
    assert kept(cache) == {1, 2, 4}, "2 is needed in 5 batches by the other"
    one.say({name(1): 0, name(2): 1, name(4): 0})
    assert read(cache, 5) == content(5), "who waits for a file gets it"
    assert kept(cache) == {1, 4, 5}


def test_what_a_process_needed_that_has_ended_does_not_count(cache: Cache) -> None:
    for number in (1, 2, 3):
        read(cache, number)

    def need_all() -> None:
        Notice(cache).say({name(number): 0 for number in (1, 2, 3)})
        (cache.folder / "said").touch()
        time.sleep(LONG)

    with child(need_all):
        wait_for((cache.folder / "said").exists)
        with pytest.raises(NoRoomError):
            ahead(cache, 4, 7)
    assert ahead(cache, 4, 7)


def test_a_file_is_readable_to_its_end_by_who_opened_it_before_it_went(cache: Cache) -> None:
    descriptor = opened(cache, name(1), SIZE, fills(1), "")
    for number in (2, 3, 4, 5):
        read(cache, number)
    assert kept(cache) == {3, 4, 5}
    assert os.pread(descriptor, SIZE, 0) == content(1)
    os.close(descriptor)


def test_the_limit_holds_at_every_moment_while_many_read(cache: Cache) -> None:
    over, done, wrong = list[int](), threading.Event(), list[int]()

    def watch() -> None:
        while not done.is_set():
            sizes = list[int]()
            for entry in os.scandir(cache.folder):
                with suppress(FileNotFoundError):
                    sizes.append(entry.stat().st_size)
            # A file that is renamed while the folder is listed may be seen under both of its names.
            if sum(sizes) > cache.limit + 2 * SIZE:
                over.append(sum(sizes))

    def read_all(first: int) -> None:
        for number in range(40):
            at = (first + number) % 8
            if read(cache, at) != content(at):
                wrong.append(at)

    read(cache, 0)
    watcher = threading.Thread(target=watch)
    readers = [threading.Thread(target=read_all, args=(first,)) for first in (0, 2, 4, 6)]
    for thread in (watcher, *readers):
        thread.start()
    for thread in readers:
        thread.join(LONG)
    done.set()
    watcher.join(LONG)
    assert over == []
    assert wrong == []
    assert sum(file.stat().st_size for file in cache.folder.glob("*")) <= cache.limit


@contextmanager
def being_filled(cache: Cache, number: int) -> Iterator[None]:
    """Let another thread fetch a file, and get nothing while the block runs."""
    begun, go_on = threading.Event(), threading.Event()

    def fill(descriptor: int) -> None:
        begun.set()
        go_on.wait(LONG)
        fills(number)(descriptor)

    thread = threading.Thread(target=read, args=(cache, number, fill))
    thread.start()
    try:
        assert begun.wait(LONG)
        yield
    finally:
        go_on.set()
        thread.join(LONG)


def test_who_waits_for_a_process_that_gets_nothing_says_so(cache: Cache) -> None:
    impatient = Cache(cache.folder, cache.limit, 0.3 / 60)
    with being_filled(cache, 1), pytest.raises(UserError) as error:
        read(impatient, 1)
    told = f"http://there/x: another process of this machine fetches it into {cache.folder} and got nothing"
    assert str(error.value).startswith(told)


def test_who_waits_for_room_that_others_take_and_do_not_fill_says_so(cache: Cache) -> None:
    small = Cache(cache.folder, SIZE, 0.3 / 60)
    with being_filled(small, 1), pytest.raises(UserError) as error:
        read(small, 2)
    told = f"http://there/x: other processes of this machine take the room for it in {cache.folder} and got nothing"
    assert str(error.value).startswith(told)
    assert read(small, 2) == content(2)


def test_a_fetch_that_begins_anew_is_waited_for(cache: Cache) -> None:
    impatient = Cache(cache.folder, cache.limit, 0.6 / 60)
    begun = threading.Event()

    def fill(descriptor: int) -> None:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            fills(1)(descriptor)
            begun.set()
            time.sleep(0.02)

    thread = threading.Thread(target=read, args=(cache, 1, fill))
    thread.start()
    assert begun.wait(LONG)
    assert read(impatient, 1) == content(1)
    thread.join(LONG)


@pytest.fixture
def small_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Return a cache whose limit is beyond its disk, which holds three files."""

    def reserve(descriptor: int, start: int, size: int) -> None:
        if sum(path.stat().st_size for path in cache.folder.iterdir() if len(path.name) >= 64) + size > 3 * SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, size)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    return Cache(cache.folder, 100 * SIZE, 1)


def test_on_a_full_disk_what_is_needed_last_makes_room(small_disk: Cache) -> None:
    for number in (1, 2, 3):
        read(small_disk, number)
        os.utime(small_disk.folder / name(number), (number, number))
    assert read(small_disk, 4) == content(4)
    assert kept(small_disk) == {2, 3, 4}
    notice = Notice(small_disk)
    notice.say({name(number): number for number in (2, 3, 4)})
    with pytest.raises(UserError, match=r"free some, lower cache\.gigabytes"):
        ahead(small_disk, 5, 7)
    assert kept(small_disk) == {2, 3, 4}
    assert ahead(small_disk, 5, 3)
    assert kept(small_disk) == {2, 3, 5}


def test_on_a_full_disk_what_others_fill_is_waited_for(small_disk: Cache) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def fill(descriptor: int) -> None:
        begun.release()
        go_on.wait(LONG)

    threads = [threading.Thread(target=read, args=(small_disk, number, fill)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=LONG)
    with pytest.raises(NoRoomError):
        ahead(small_disk, 4, 0)
    go_on.set()
    for thread in threads:
        thread.join(LONG)
    assert read(small_disk, 4) == content(4)


def test_a_notice_in_a_folder_that_was_removed_is_put_up_again(cache: Cache) -> None:
    for number in (1, 2, 3):
        read(cache, number)
    notice = Notice(cache)
    shutil.rmtree(cache.folder)
    cache.folder.touch()
    with pytest.raises(UserError, match="cannot be used as a cache"):
        notice.say({name(1): 0})
    cache.folder.unlink()
    notice.say({name(number): 0 for number in (1, 2, 3)})
    for number in (1, 2, 3):
        read(cache, number)
    with pytest.raises(NoRoomError):
        ahead(cache, 4, 7)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some, lower cache.gigabytes"), (errno.ENOLCK, "choose a folder on a local disk")],
)
def test_a_folder_that_cannot_be_used_is_one_message(cache: Cache, number: int, advice: str) -> None:
    def fill(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=rf"{cache.folder}: cannot be used as a cache of shards .*; {advice}"):
        read(cache, 1, fill)


def test_a_file_in_the_place_of_the_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match="cannot be used as a cache"):
        read(Cache(tmp_path / "cache", SIZE, 1), 1)


def test_without_a_folder_it_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cached.cache_of(None, 0.5, 1, lambda: None).folder == Path("/somewhere/esl-dist/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cached.cache_of(None, 0.5, 1, lambda: None).folder == Path("/home/me/.cache/esl-dist/shards")
    assert cached.cache_of("here", 0.5, 1, lambda: None).limit == 5 * 10**8
