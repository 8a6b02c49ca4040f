"""Shards from far away are those that were packed, whatever the server answers, or are refused with one message."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_dist.data import remote
from esl_dist.data.cache import Cache
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import CorruptSampleError
from tests.data.far.shards import FIRST, LAST, SECOND, everything, flipped, refusal
from tests.far_servers import FarServer, s3_server


@pytest.mark.parametrize("knows_parts", [True, False])
def test_samples_and_fingerprint_are_those_of_the_folder(
    near: ShardReader, far: FarServer, cache: Cache, knows_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esl_dist.data.far_shards.PART_BYTES", 1000)
    far.knows_parts = knows_parts
    for _ in range(2):
        reader = open_shards(f"{far.url}/", cache=cache)
        assert reader.fingerprint() == near.fingerprint()
        assert everything(reader) == everything(near)
        assert reader.where(3) == f"{far.url}/{SECOND}, sample 'scene_003'"
    assert far.tars() == {FIRST: 1, SECOND: 1, LAST: 1}
    assert far.asked[f"GET {INDEX_NAME}"] == 1


def test_shards_in_a_bucket_are_those_of_the_folder(
    near: ShardReader, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path / "there", "town") as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        reader = open_shards("s3://town", cache=cache)
        assert reader.fingerprint() == near.fingerprint()
        assert everything(reader) == everything(near)
        missing = refusal(lambda: open_shards("s3://town/elsewhere", cache=cache))
        assert missing.startswith("s3://town/elsewhere: no index.json there")
    # What is here is enough, though the server is gone.
    assert everything(reader) == everything(near)
    gone = refusal(lambda: open_shards("s3://town", cache=cache))
    assert f"s3://town/{INDEX_NAME}: cannot be fetched" in gone
    assert f"after {remote.ATTEMPTS} attempts" in gone


def test_connections_that_break_and_servers_that_are_busy_are_tried_again(
    near: ShardReader, far: FarServer, cache: Cache, capfd: pytest.CaptureFixture[str]
) -> None:
    busy = iter([503, 500, 429, 408])
    far.fault = lambda method, name: (next(busy, 0), b"") if name == SECOND else None
    busy_then_well = far.fault
    far.fault = lambda method, name: None if (answer := busy_then_well(method, name)) in (None, (0, b"")) else answer
    far.cut = 2
    assert everything(open_shards(far.url, cache=cache)) == everything(near)
    told = capfd.readouterr().err
    assert f"warning: {far.url}/{FIRST}: " in told
    assert f"warning: {far.url}/{SECOND}: HTTP 503" in told
    assert f"attempt 2 of {remote.ATTEMPTS}" in told


def test_a_server_that_went_and_came_back_is_waited_for(near: ShardReader, far: FarServer, cache: Cache) -> None:
    reader = open_shards(far.url, cache=cache)
    far.stop()
    message = refusal(lambda: reader.read(0, "image"))
    assert message.startswith(f"{far.url}/{INDEX_NAME}: cannot be fetched (")
    assert f"after {remote.ATTEMPTS} attempts" in message
    far.start()
    assert everything(reader) == everything(near)


@pytest.mark.parametrize(
    ("ending", "knows_parts"), [("chunked", False), ("close", False), ("gzip", False), ("chunked", True)]
)
def test_files_whose_length_is_not_said_are_those_of_the_folder(
    near: ShardReader, far: FarServer, cache: Cache, ending: str, knows_parts: bool
) -> None:
    far.ending, far.knows_parts = ending, knows_parts
    # Better than one that asks for ever.
    far.fault = lambda method, name: (403, b"") if far.asked[f"GET {name}"] > 10 else None
    reader = open_shards(far.url, cache=cache)
    assert everything(reader) == everything(near)
    assert reader.fingerprint() == near.fingerprint()


@pytest.mark.parametrize("knows_parts", [True, False])
def test_an_answer_without_length_that_breaks_off_is_not_taken_for_the_file(
    near: ShardReader, far: FarServer, cache: Cache, knows_parts: bool
) -> None:
    far.ending, far.knows_parts = "close", knows_parts
    reader = open_shards(far.url, cache=cache)
    far.cut = 2
    at_once = iter([(206, b"")] if knows_parts else [])
    far.fault = lambda method, name: next(at_once, None) if name == SECOND else None
    assert everything(reader) == everything(near)


def test_answers_that_always_break_off_are_told_as_that(near: ShardReader, far: FarServer, cache: Cache) -> None:
    far.ending, far.knows_parts = "close", False
    reader = open_shards(far.url, cache=cache)
    far.cut = 100
    message = refusal(lambda: reader.read(0, "image"))
    assert f"{far.url}/{FIRST}: cannot be fetched (the answer ended after 5120 of 10240 bytes), after 6" in message


def test_a_shard_without_parts_may_take_as_long_as_its_parts_would(
    near: ShardReader, far: FarServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.knows_parts = False
    reader = open_shards(far.url, cache=cache)
    monkeypatch.setattr(remote, "PART_SECONDS", 0.8)
    monkeypatch.setattr(remote, "PART_BYTES", 1000)
    far.pace = (1000, 0.1)
    assert reader.read(0, "image") == near.read(0, "image")


def test_a_server_that_sends_a_few_bytes_now_and_then_is_given_up(
    near: ShardReader, far: FarServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_shards(far.url, cache=cache)
    monkeypatch.setattr(remote, "PART_SECONDS", 0.2)
    far.pace = (1, 0.01)
    message = refusal(lambda: reader.read(0, "image"))
    assert f"{far.url}/{FIRST}: cannot be fetched (" in message
    assert "are too few), after 1 attempts" in message


def test_a_server_that_knows_neither_lengths_nor_parts_of_what_it_has_is_asked_for_the_whole(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    no_part = iter([(416, b"")])

    def fault(method: str, name: str) -> tuple[int, bytes] | None:
        if method == "HEAD":
            return 200, b""
        return next(no_part, None) if name == SECOND else None

    far.fault = fault
    assert everything(open_shards(far.url, cache=cache)) == everything(near)


@pytest.mark.parametrize(
    ("status", "words"), [(403, "refuses it (HTTP 403"), (401, "refuses it (HTTP 401"), (503, "after 6 attempts in")]
)
def test_a_server_that_refuses_is_asked_again_only_where_that_may_help(
    near: ShardReader, far: FarServer, cache: Cache, status: int, words: str
) -> None:
    reader = open_shards(far.url, cache=cache)
    far.fault = lambda method, name: (status, b"") if name == FIRST else None
    message = refusal(lambda: reader.read(0, "image"))
    assert message.startswith(f"{far.url}/{FIRST}: ")
    assert words in message
    assert far.tars()[FIRST] == (remote.ATTEMPTS if status == 503 else 1)


def test_a_server_that_says_nothing_is_given_up(
    near: ShardReader, far: FarServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_shards(far.url, cache=cache)
    monkeypatch.setattr(remote, "PART_SECONDS", 0.2)
    far.fault = lambda method, name: time.sleep(0.5) if name == FIRST else None
    assert f"{far.url}/{FIRST}: cannot be fetched (" in refusal(lambda: reader.read(0, "image"))


@pytest.mark.parametrize(
    ("damage", "words", "asked"),
    [
        (flipped, "the bytes of {url} are not those of the index (checksum differs); copy both there again", 2),
        (lambda content: content[:-10], "{url} has 10230 bytes, the index says 10240; copy it there again", 2),
        # Each time for a part and, as there is none, for the whole.
        (lambda content: b"", "{url} has 0 bytes, the index says 10240; copy it there again", 4),
    ],
)
def test_a_damaged_shard_is_fetched_twice_then_named_and_not_fetched_for_its_other_samples(
    near: ShardReader, far: FarServer, cache: Cache, damage: Callable[[bytes], bytes], words: str, asked: int
) -> None:
    far.damage = lambda name, content: damage(content) if name == SECOND else content
    reader = open_shards(far.url, cache=cache)
    url = f"{far.url}/{SECOND}"
    for position in (3, 4):
        message = refusal(lambda at=position: reader.read(at, "image"), CorruptSampleError)
        assert message.startswith(f"{url}, sample 'scene_00{position}': {words.format(url=url)}")
    assert far.tars() == {SECOND: asked}
    assert reader.read(0, "image") == near.read(0, "image")
    assert not list(cache.folder.glob("*.partial"))


def test_a_shard_that_was_damaged_on_its_way_once_is_whole_the_second_time(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    damages = iter([flipped])
    far.damage = lambda name, content: next(damages, bytes)(content) if name == SECOND else content
    assert everything(open_shards(far.url, cache=cache)) == everything(near)
    assert far.tars()[SECOND] == 2
