"""What is missing, changed or misnamed far away or in the cache is told by its place, or fetched again."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from esl_dist.data import remote
from esl_dist.data.cache import Cache
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import ShardReader, open_shards
from esl_dist.errors import CorruptSampleError
from tests.builders import drawn_samples, write_shards
from tests.data.far.shards import FIRST, LAST, SAMPLES, SECOND, everything, refusal
from tests.far_servers import FarServer


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
