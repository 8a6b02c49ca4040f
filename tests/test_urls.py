"""URLs are taken where shards are read, refused elsewhere, and never hold or show a secret."""

from pathlib import Path

import pytest

from esl_dist.config import Demo, Evaluate, Prepare, PseudoLabel, Train
from esl_dist.config_files import load_config
from esl_dist.errors import UserError
from esl_dist.files import as_given, shortened
from esl_dist.urls import file_of, problem_of_url

HERE = "is impossible: expected a place on this machine, not a URL"
TRAIN = ("source.path=s", "target.path=t")
EVALUATE = ("checkpoint=c", "data.path=d")
LABEL = ("checkpoint=c", "target.path=t", "output=o")
PREPARE = ("dataset=d", "split=s", "output=o")


@pytest.mark.parametrize(
    ("schema", "words", "keys"),
    [
        (Train, TRAIN, ["source.path", "target.path", "pseudo_labels"]),
        (Evaluate, EVALUATE, ["data.path", "statistics_from", "classes_from"]),
        (PseudoLabel, LABEL, ["target.path", "classes_from"]),
    ],
)
@pytest.mark.parametrize("url", ["http://host:8080/a/b", "https://host/a%20b/ü/", "s3://bucket", "s3://bucket/a b"])
def test_shards_are_read_from_urls(schema: type, words: tuple[str, ...], keys: list[str], url: str) -> None:
    for key in keys:
        load_config(schema, None, [*words, f"{key}={url}"])


@pytest.mark.parametrize(
    ("schema", "words", "keys"),
    [
        (Train, TRAIN, ["experiments", "network.start", "cache.folder"]),
        (Evaluate, EVALUATE, ["checkpoint", "output", "predictions", "experiments", "cache.folder"]),
        (PseudoLabel, LABEL, ["checkpoint", "output", "cache.folder"]),
        (Prepare, PREPARE, ["dataset", "root", "output"]),
        (Demo, (), ["output", "recipes"]),
    ],
)
def test_what_is_written_or_read_by_what_knows_no_network_is_here(
    schema: type, words: tuple[str, ...], keys: list[str]
) -> None:
    for key in keys:
        with pytest.raises(UserError) as error:
            load_config(schema, None, [*words, f"{key}=s3://bucket/x"])
        assert str(error.value) == f"command line: {key}=s3://bucket/x {HERE}"
    with pytest.raises(UserError, match=HERE):
        load_config(Evaluate, None, ["data.path=d", "mode=ensemble", "checkpoints=[a,'http://host/b']"])


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc",
            "pipe://cat",
            "ftp://host/x",
            "gs://bucket/x",
            "simplecache::s3://bucket/x",
            "://x",
            "hdfs://x",
        ),
        *("http://", "http:///x", "s3://", "s3:///x", "http://host:port/x", "http://[::1/x", "http://münchen/x"),
        *("https://host/x?token=abc", "https://host/x#y", "s3://bucket/x?versionId=1"),
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="is impossible: expected a folder, or one far away: http:"):
        load_config(Train, None, [*TRAIN, f"source.path={url}"])


@pytest.mark.parametrize("url", ["http:/me:hush@host/x", "s3:me:hush@bucket", "pipe:cat", "S3:b", "file:/etc"])
def test_what_begins_as_a_url_and_is_no_folder_is_refused_as_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"is impossible: (expected a folder, or one far away: http:|it holds an @)"
    ) as error:
        load_config(Train, None, [*TRAIN, f"source.path={url}"])
    assert "hush" not in str(error.value)
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    load_config(Train, None, [*TRAIN, "source.path=a:b"])


def test_a_url_in_capitals_is_refused_with_how_to_write_it() -> None:
    with pytest.raises(UserError, match="write http:// in small letters"):
        load_config(Train, None, [*TRAIN, "source.path=HTTP://host/x"])


SECRETS = [
    *("http://me:hush@host/x", "https://hush@host/x", "s3://me:hush@bucket/x", "x://hush@y"),
    *("s3://AKIA:abc/dEf/hush@bucket/x", "s3://AKIA/hush@bucket/x", "http://me:1/hush@host/x", "http://me:hu sh@host"),
    *("http://me:a?hush@host", "http://me:a#hush@host", "http://me:a@hush@host"),
    *("https://host/x?token=hush", "https://host/x?token=a/b c hush", "https://host/x#hush", "http://host:a?hush"),
]


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("key", ["source.path", "pseudo_labels", "experiments", "network.start", "steps"])
def test_a_secret_in_a_url_is_refused_and_not_shown(url: str, key: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    inner, _, last = key.rpartition(".")
    file.write_text(f"{inner}:\n  {last}: {url}\n" if inner else f"{last}: {url}\n")
    for words in ([f"{key}={url}"], [f"{key}=[{url}]"]):
        with pytest.raises(UserError) as error:
            load_config(Train, None, [*TRAIN, *words])
        assert "hu" not in str(error.value)
    with pytest.raises(UserError) as error:
        load_config(Train, file, [] if key == "source.path" else ["source.path=s"])
    assert "hu" not in str(error.value)


def test_what_a_message_repeats_has_no_secret() -> None:
    for show in (as_given, shortened):
        assert "hush" not in show("http://me:hush@host/x")
        assert "me@host/x" in show("me@host/x")
    assert "hush" not in shortened(["http://me:hush@host/x"])


@pytest.mark.parametrize(
    ("folder", "name", "url"),
    [
        ("http://host/a", "shard-000000.tar", "http://host/a/shard-000000.tar"),
        ("http://host", "x", "http://host/x"),
        ("https://host:1/a b/%20/", "..%2f?#", "https://host:1/a%20b/%20/..%252f%3F%23"),
        ("s3://bucket/a b", "x?%", "s3://bucket/a b/x?%"),
        ("s3://bucket", "x", "s3://bucket/x"),
    ],
)
def test_a_file_lies_in_its_folder(folder: str, name: str, url: str) -> None:
    assert problem_of_url(folder) is None
    assert file_of(folder, name) == url
