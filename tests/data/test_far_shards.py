"""Shards from far away are those that were packed, or are refused with one message, whatever the server does."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from esl_dist.data import remote
from esl_dist.data.cache import Cache
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import ShardReader, open_shards, shard_name
from esl_dist.errors import CorruptSampleError, UserError
from tests.builders import drawn_samples, drawn_shards, write_shards
from tests.far_servers import FarServer, far_server, s3_server

SAMPLES = 7
FIRST, SECOND, LAST = (shard_name(number) for number in range(3))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def near(tmp_path: Path) -> ShardReader:
    return drawn_shards(tmp_path / "there", SAMPLES)


@pytest.fixture
def far(near: ShardReader) -> Iterator[FarServer]:
    with far_server(Path(near.folder)) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9, 1)


def everything(reader: ShardReader) -> list[bytes]:
    return [reader.read(position, kind) for position in range(len(reader)) for kind in ("image", "label")]


def refusal(call: Callable[[], object], kind: type[UserError] = UserError) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert type(error.value) is kind
    return str(error.value)


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


def flipped(content: bytes) -> bytes:
    """Change a byte that is a header's, so that no sample is."""
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


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


@pytest.mark.parametrize("name", [FIRST, LAST])
def test_first_and_last_shard_are_looked_for_at_the_start(
    near: ShardReader, far: FarServer, cache: Cache, name: str
) -> None:
    (far.folder / name).unlink()
    assert refusal(lambda: open_shards(far.url, cache=cache)).startswith(
        f"{far.url}/{name}: is missing, the index says"
    )


def test_a_shard_in_the_middle_that_is_missing_is_told_when_it_is_read(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    (far.folder / SECOND).unlink()
    reader = open_shards(far.url, cache=cache)
    url = f"{far.url}/{SECOND}"
    for position in (3, 5):
        message = refusal(lambda at=position: reader.read(at, "image"), CorruptSampleError)
        assert message == f"{url}, sample 'scene_00{position}': {url} is missing; put it back"
    assert far.tars() == {SECOND: remote.MISSING_ATTEMPTS}


@pytest.mark.parametrize("name", [SECOND, INDEX_NAME])
def test_a_file_that_is_missing_for_a_moment_is_asked_for_again(
    near: ShardReader, far: FarServer, cache: Cache, name: str
) -> None:
    reader = open_shards(far.url, cache=cache)
    missing = iter([name, name])
    far.fault = lambda method, asked: (404, b"") if asked == name and next(missing, None) else None
    assert everything(reader) == everything(near)


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(near: ShardReader, far: FarServer, cache: Cache) -> None:
    reader = open_shards(far.url, cache=cache)
    reader.read(0, "image")
    shard = near.index.shards[0]
    (cache.folder / shard.sha256).write_bytes(bytes(shard.size))
    assert everything(reader) == everything(near)
    assert far.tars()[FIRST] == 2


@pytest.mark.parametrize("damage", [lambda content: bytes(len(content)), lambda content: content.replace(b"7", b"8")])
def test_an_index_that_was_damaged_in_the_cache_is_fetched_again(
    near: ShardReader, far: FarServer, cache: Cache, damage: Callable[[bytes], bytes]
) -> None:
    open_shards(far.url, cache=cache)
    [file] = (path for path in cache.folder.iterdir() if not path.name.startswith("."))
    assert damage(file.read_bytes()) != file.read_bytes()
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert open_shards(far.url, cache=cache).fingerprint() == near.fingerprint()
    assert far.asked[f"GET {INDEX_NAME}"] == 2


def test_an_index_that_was_replaced_while_it_was_fetched_is_not_kept_as_the_one_before(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    there = far.folder / INDEX_NAME
    before = there.read_bytes()

    def replace(method: str, name: str) -> None:
        if (method, name) == ("GET", INDEX_NAME):
            there.write_bytes(before.replace(b"scene_000", b"scene_999"))

    far.fault = replace
    other = open_shards(far.url, cache=cache)
    assert other.fingerprint() != near.fingerprint()
    assert other.where(0).endswith("'scene_999'")
    far.fault = lambda method, name: None
    there.write_bytes(before)
    assert open_shards(far.url, cache=cache).fingerprint() == near.fingerprint()
    assert "was changed or removed" in refusal(lambda: other.read(0, "image"))


def test_an_index_that_was_changed_while_a_program_runs_is_refused_before_more_is_fetched(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    reader = open_shards(far.url, cache=cache)
    known = reader.read(0, "image")
    write_shards(far.folder, drawn_samples(SAMPLES)[::-1])
    assert reader.read(0, "image") == known, "what was fetched stays"
    message = refusal(lambda: reader.read(3, "image"))
    assert message.startswith(f"{far.url}/{INDEX_NAME}: was changed or removed since this program began with it")
    assert open_shards(far.url, cache=cache).fingerprint() != near.fingerprint()


def test_a_server_that_only_calls_the_same_index_another_version_is_believed(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    reader = open_shards(far.url, cache=cache)
    assert reader.far is not None
    reader.far.index_version = reader.far.index_version._replace(etag="before it was copied there again")
    assert everything(reader) == everything(near)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "cannot be read as JSON"), (b"{}", "expected"), (b"\xff\xfe", "cannot be read as JSON")],
)
def test_a_damaged_index_is_one_message_and_is_not_kept(
    near: ShardReader, far: FarServer, cache: Cache, content: bytes, words: str
) -> None:
    far.damage = lambda name, whole: content if name == INDEX_NAME else whole
    message = refusal(lambda: open_shards(far.url, cache=cache))
    assert message.startswith(f"{far.url}/{INDEX_NAME}: ")
    assert words in message
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def renamed(far: FarServer, name: str) -> None:
    """Let the index call the second shard by another name."""
    index = json.loads((far.folder / INDEX_NAME).read_text())
    index["shards"][1]["name"] = name
    (far.folder / INDEX_NAME).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["%2e%2e%2fsecret", "?x", "#x", "a b%", "é@:"])
def test_a_shard_may_have_any_name_of_a_file(near: ShardReader, far: FarServer, cache: Cache, name: str) -> None:
    packed = everything(near)
    (far.folder / SECOND).rename(far.folder / name)
    renamed(far, name)
    assert everything(open_shards(far.url, cache=cache)) == packed


@pytest.mark.parametrize("name", ["../secret", "http://other/shard.tar", "/etc/passwd", "..", "//other"])
def test_a_name_in_an_index_that_leads_elsewhere_is_refused(
    near: ShardReader, far: FarServer, cache: Cache, name: str
) -> None:
    renamed(far, name)
    assert "shards[1].name" in refusal(lambda: open_shards(far.url, cache=cache))


def test_a_redirection_leads_to_http_alone(near: ShardReader, far: FarServer, cache: Cache, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    target = f"{far.url}/{SECOND}"
    far.fault = lambda method, name: (302, target.encode()) if name == FIRST else None
    reader = open_shards(far.url, False, cache)
    assert "checksum differs" in refusal(lambda: reader.read(0, "image"), CorruptSampleError)
    target = f"file://{secret}"
    reader = open_shards(far.url, False, cache)
    message = refusal(lambda: reader.read(0, "image"))
    assert message.startswith(f"{far.url}/{FIRST}: ")
    assert "refuses it (NonHttpUrlRedirectClientError file://" in message
    assert far.tars()[FIRST] == 3, "twice for the other shard, and once"


def test_a_redirection_to_what_is_no_host_is_one_message_at_once(
    near: ShardReader, far: FarServer, cache: Cache
) -> None:
    far.fault = lambda method, name: (302, f"http://{'a' * 70}.x/y".encode()) if name == FIRST else None
    reader = open_shards(far.url, False, cache)
    assert "the server refuses it (" in refusal(lambda: reader.read(0, "image"))
    assert far.tars()[FIRST] == 1


def test_a_limit_that_holds_no_shard_is_refused(near: ShardReader, far: FarServer, tmp_path: Path) -> None:
    message = refusal(lambda: open_shards(far.url, cache=Cache(tmp_path / "cache", 10_000, 1)))
    assert message == f"{far.url}/{FIRST}: has 10240 bytes, more than cache.gigabytes=1e-05 holds; raise it"


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "s3://town/x"])
def test_packages_that_are_missing_are_named(url: str, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    remote._files.cache_clear()
    for name in ("http", "s3"):
        monkeypatch.delitem(import_module("fsspec.registry")._registry, name, raising=False)
    for name in ("aiohttp", "s3fs", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, name, None)
    assert refusal(lambda: open_shards(url, cache=cache)).endswith("install them: pip install -e '.[remote]'")


def test_no_credentials_are_one_message_that_says_where_they_are_looked_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote._files.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    message = refusal(lambda: open_shards("s3://town/x", cache=cache))
    assert "Unable to locate credentials" in message
    assert "AWS_ACCESS_KEY_ID" in message
    assert "FSSPEC_S3_ANON=true" in message


def test_a_password_for_a_server_is_that_of_the_users_netrc(
    near: ShardReader, far: FarServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    far.password = "me:hush"
    assert "refuses it (HTTP 401" in refusal(lambda: open_shards(far.url, cache=cache))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hush")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert everything(open_shards(far.url, cache=cache)) == everything(near)
