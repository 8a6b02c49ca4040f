"""An index is held to its format where it is read and where it is written; what does not fit is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esl_dist.data.shard_index import INDEX_NAME, ShardIndex, write_index
from esl_dist.data.shards import open_shards, verify, write_shard
from esl_dist.errors import UserError
from tests.builders import CLASS_ENTRIES, class_set, drawn_shards


def changed_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Edit index.json as a person or a bad disk might."""
    content = json.loads((folder / INDEX_NAME).read_text())
    content = change(content) or content
    (folder / INDEX_NAME).write_text(json.dumps(content))
    return folder


def test_a_missing_folder_or_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no such folder of shards; make it with esl-dist pack"):
        open_shards(tmp_path / "absent")
    drawn_shards(tmp_path, 2)
    (tmp_path / INDEX_NAME).unlink()
    with pytest.raises(UserError, match=rf"{tmp_path.name}: no index\.json, so no complete folder"):
        open_shards(tmp_path)


@pytest.mark.parametrize("version", [0, 1, 3, None, "2", 2.0, True])
def test_another_format_version_is_refused(tmp_path: Path, version: object) -> None:
    drawn_shards(tmp_path, 1)
    changed_index(tmp_path, lambda index: index.update(format_version=version))
    told = f"format version {version}, this program reads 2" if type(version) is int else "format_version: expected"
    with pytest.raises(UserError, match=rf"index\.json: {told}"):
        open_shards(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', "3", "null"])
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(UserError, match=r"index\.json: expected the format 'esl-dist shards'"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "absent") for key in ("dataset", "split", "image_size", "class_sets", "made_with", "shards")),
        *((key, value) for key in ("image_size", "class_sets", "shards") for value in (3, "x", [1], {"a": 1})),
        *(("made_with", value) for value in (3, "x", [1])),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, key: str, value: object) -> None:
    drawn_shards(tmp_path, 1)
    changed_index(tmp_path, lambda index: index.pop(key) if value == "absent" else index.update({key: value}))
    with pytest.raises(UserError, match=r"index\.json"):
        open_shards(tmp_path)


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "inner/x.tar", "..", ".", ""])
def test_a_shard_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "shards"
    drawn_shards(folder, 1)
    (tmp_path / "x.tar").write_bytes((folder / "shard-000000.tar").read_bytes())
    changed_index(folder, lambda index: index["shards"][0].update(name=name))
    with pytest.raises(UserError, match=rf"index\.json: shards\[0\]\.name '{name}' is impossible: .*; make the"):
        open_shards(folder)


@pytest.mark.parametrize("key", ["dataset", "split"])
@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ""])
def test_a_name_that_would_lead_out_of_a_folder_is_refused(tmp_path: Path, key: str, name: str) -> None:
    drawn_shards(tmp_path, 1)
    changed_index(tmp_path, lambda index: index.update({key: name}))
    with pytest.raises(UserError, match=rf"index\.json: {key} '{name}' is impossible"):
        open_shards(tmp_path)


@pytest.mark.parametrize("place", [[-1, 5, 0], [0, -1, 0], [0, 10**9, 0], [10**9, 1, 0]])
def test_a_sample_outside_of_its_shard_is_refused(tmp_path: Path, place: list[int]) -> None:
    drawn_shards(tmp_path, 1)
    changed_index(tmp_path, lambda index: index["shards"][0]["samples"][0]["members"].update({"image.png": place}))
    with pytest.raises(UserError, match=r"index\.json: shards\[0\]\.samples\[0\]\.members\.image\.png.*: expected "):
        open_shards(tmp_path)


def test_a_number_too_large_to_be_one_is_refused(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 1)
    index = (tmp_path / INDEX_NAME).read_text()
    (tmp_path / INDEX_NAME).write_text(index.replace('"bytes": 10240', '"bytes": 1e999'))
    with pytest.raises(UserError, match=r"index\.json: cannot be read as JSON .*1e999 is no finite number"):
        open_shards(tmp_path)


IMPOSSIBLE_KEYS = [
    "",
    "/x",
    "../../../../x",
    "a/../../b",
    "a//b",
    "a/",
    "x" * 300,
    "nul\0",
    "two\nlines",
    "a.b",
    7,
    None,
]


@pytest.mark.parametrize("key", IMPOSSIBLE_KEYS)
def test_a_key_that_an_unpacker_would_follow_out_of_its_folder_is_refused(tmp_path: Path, key: object) -> None:
    drawn_shards(tmp_path, 2)
    changed_index(tmp_path, lambda index: index["shards"][0]["samples"][1].update(key=key))
    with pytest.raises(UserError, match=r"index\.json: shards\[0\]\.samples\[1\]\.key.*; make the shards again$"):
        open_shards(tmp_path)


@pytest.mark.parametrize("key", [key for key in IMPOSSIBLE_KEYS if isinstance(key, str)])
def test_such_a_key_is_not_written(tmp_path: Path, key: str) -> None:
    reader = drawn_shards(tmp_path / "shards", 1)
    with pytest.raises(UserError, match=r"shard-000001\.tar: key .* is impossible"):
        write_shard(tmp_path / "shard-000001.tar", [("a", {"x": b""}), (key, {"x": b""})])
    assert not (tmp_path / "shard-000001.tar").exists()
    [shard] = reader.index.shards
    other = replace(shard, samples=(replace(shard.samples[0], key=key),))
    with pytest.raises(UserError, match=r"index\.json: shards\[0\]\.samples\[0\]\.key"):
        write_index(tmp_path / "other", replace(reader.index, shards=(other,)))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("extension", ["", "/../../x", "..", "x\0y"])
def test_an_extension_that_leads_out_of_a_folder_is_refused(tmp_path: Path, extension: str) -> None:
    with pytest.raises(UserError, match=r"shard-000000\.tar: extension of 'a'"):
        write_shard(tmp_path / "shard-000000.tar", [("a", {extension: b""})])
    drawn_shards(tmp_path, 1)
    changed_index(tmp_path, lambda index: index["shards"][0]["samples"][0].update(members={extension: [512, 1, 0]}))
    with pytest.raises(UserError, match=r"index\.json: shards\[0\]\.samples\[0\]\.members: key .* is impossible"):
        open_shards(tmp_path)


def test_a_shard_or_a_key_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """Its samples would count twice."""
    reader = drawn_shards(tmp_path, 4, in_a_shard=2)
    with pytest.raises(UserError, match=r"shard-000000\.tar: key 'a' is impossible: .* no two the same"):
        write_shard(tmp_path / "shard-000000.tar", [("a", {"x": b""}), ("a", {"x": b""})])
    first, second = reader.index.shards
    for shards, twice in (((first, first), "shard"), ((first, replace(second, samples=first.samples)), "key")):
        with pytest.raises(UserError, match=rf"index\.json: the {twice} '.*' is there 2 times; make the shards again"):
            write_index(tmp_path, replace(reader.index, shards=shards))
    double = {"samples": 6, "shards": json.loads((tmp_path / INDEX_NAME).read_text())["shards"][:1] * 3}
    changed_index(tmp_path, lambda index: index.update(double))
    with pytest.raises(UserError, match=r"index\.json: the shard 'shard-000000\.tar' is there 3 times"):
        open_shards(tmp_path)


def first_members(index: dict[str, Any]) -> dict[str, list[int]]:
    return index["shards"][0]["samples"][0]["members"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda index: index.update(image_size=[0, 0]), r"image_size\[0\]: expected a whole number from 1"),
        (lambda index: index.update(label_size=[300_000, 300_000]), "label_size: expected width and height of at most"),
        (lambda index: index.update(image_size=[2**20 + 1, 1]), r"image_size\[0\]: expected a whole number"),
        (lambda index: index.update(image_size=[16.0, 12]), r"image_size\[0\]: expected a whole number"),
        (lambda index: index.update(image_size=[True, 12]), r"image_size\[0\]: expected a whole number"),
        (lambda index: index.update(image_size="16"), "image_size: expected a list of 2"),
        (lambda index: index.update(samples=3), "samples: expected 2, the number of samples that are listed, got 3"),
        (lambda index: index["shards"][0].update(sample_count=1), r"shards\[0\]\.sample_count: expected 2"),
        (lambda index: index["shards"][0].pop("sample_count"), r"shards\[0\]: no 'sample_count'"),
        (lambda index: index["shards"][0].update(sha256="x" * 64), r"shards\[0\]\.sha256: expected a SHA-256"),
        (lambda index: index["shards"][0].update(sha256=None), r"shards\[0\]\.sha256: expected a SHA-256"),
        (lambda index: index["shards"][0].update(bytes="10240"), r"shards\[0\]\.bytes: expected a whole number"),
        (lambda index: index.update(sources={"0": {}}), r"sources\.0: no 'image'"),
        (lambda index: index.update(sources={"0": {"label": "a" * 64}}), r"sources\.0: no 'image'"),
        (lambda index: index.update(sources={"0": {"image": "a" * 63}}), r"sources\.0\.image: expected a SHA-256"),
        (lambda index: index.update(sources={"0": [1]}), r"sources\.0: expected a mapping"),
        (lambda index: index.update(sources={"../0": {"image": "a" * 64}}), r"sources: key '\.\./0' is impossible"),
        (
            lambda index: index["shards"][0]["samples"].__setitem__(1, 3),
            r"shards\[0\]\.samples\[1\]: expected a mapping",
        ),
        (lambda index: first_members(index).update({"label.png": [0, True, 1]}), r"members\.label\.png\[1\]: expected"),
        (lambda index: first_members(index).update({"label.png": [0]}), r"members\.label\.png: expected a list of 3"),
        (lambda index: index.update(keep_aspect_ratio=1), "keep_aspect_ratio: expected true or false, got 1"),
        (lambda index: index["class_sets"].update(village3=[]), "class_sets.village3: expected 1 to 255 classes"),
        (lambda index: index["class_sets"].update({"a\nb": CLASS_ENTRIES}), "class_sets: key"),
        (lambda index: index["class_sets"]["village3"][0].update(name="\0"), r"class_sets\.village3\[0\]\.name"),
        (lambda index: index["class_sets"]["village3"][0].update(name=["a"]), r"class_sets\.village3\[0\]\.name"),
        (lambda index: first_members(index).update({"label.png": first_members(index)["image.png"]}), "overlap"),
        (lambda index: first_members(index)["label.png"].__setitem__(2, 2**32), "CRC-32"),
        (lambda index: first_members(index).clear(), r"samples\[0\]\.members: expected its files by extension"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_with_its_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], place: str
) -> None:
    drawn_shards(tmp_path, 2)
    changed_index(tmp_path, lambda index: change(index) and None)
    with pytest.raises(UserError, match=rf"index\.json: .*{place}"):
        open_shards(tmp_path)


def test_an_index_of_an_earlier_version_and_one_with_keys_of_a_later_one_are_read(tmp_path: Path) -> None:
    fingerprint = drawn_shards(tmp_path, 2).fingerprint()
    changed_index(tmp_path, lambda index: {**index, "sources": {"scene_000": {"image": "a" * 64}}, "later": [1]})
    assert open_shards(tmp_path).fingerprint() == fingerprint
    changed_index(tmp_path, lambda index: index.pop("keep_aspect_ratio") and None)
    assert open_shards(tmp_path).fingerprint() == fingerprint


def test_a_fingerprint_does_not_change_with_the_program(tmp_path: Path) -> None:
    """Runs and pseudo-labels know their shards by it."""
    shard = write_shard(tmp_path / "shard-000000.tar", [("a/b", {"image.png": b"picture", "label.png": b"label"})])
    write_index(
        tmp_path, ShardIndex("village", "train", (16, 12), None, {"village3": class_set()}, {"size": None}, (shard,))
    )
    assert open_shards(tmp_path).fingerprint() == "5bbdbd5fcab4f028d17a4f752fc56b26dcad89b3f96ea64892bb1f1ae68070b2"


def test_an_index_whose_keys_were_exchanged_is_found_by_verify(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 2)

    def exchange(index: dict[str, Any]) -> None:
        first, second = index["shards"][0]["samples"]
        first["key"], second["key"] = second["key"], first["key"]

    with pytest.raises(UserError, match=r"shard-000000\.tar: its members are not those of index\.json"):
        verify(open_shards(changed_index(tmp_path, exchange)))


def test_a_shard_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path / "shards", 1)
    (tmp_path / "shards/shard-000000.tar").rename(tmp_path / "elsewhere.tar")
    (tmp_path / "shards/shard-000000.tar").symlink_to(tmp_path / "elsewhere.tar")
    verify(open_shards(tmp_path / "shards"))
    assert open_shards(tmp_path / "shards").read(0, "image") == reader.read(0, "image")


def test_an_index_without_a_sample_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, replace(drawn_shards(tmp_path, 2).index, shards=()))
    for whole in (True, False):
        with pytest.raises(UserError) as error:
            open_shards(tmp_path, whole)
        assert str(error.value) == f"{tmp_path}: its index.json lists no samples; make the shards again"


@pytest.mark.parametrize("pixels", [[7], [7, 0], [11, 3, 7, 3], [7, 3, 7, 3], [-1, 3], [2**16, 3], [7, 1.5], "x", None])
def test_counts_of_a_label_that_cannot_be_are_named(tmp_path: Path, pixels: object) -> None:
    drawn_shards(tmp_path, 2)
    counts = {"scene_000": [7, 100, 11, 92], "scene_001": [0, 192]}
    changed_index(tmp_path, lambda index: index.update(label_pixels=counts))
    assert open_shards(tmp_path).index.label_pixels == {"scene_000": {7: 100, 11: 92}, "scene_001": {0: 192}}
    changed_index(tmp_path, lambda index: index.update(label_pixels={**counts, "scene_001": pixels}))
    with pytest.raises(UserError, match=r"index\.json: label_pixels\.scene_001.*: expected "):
        open_shards(tmp_path)


def test_counts_of_some_samples_are_refused(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 2)
    changed_index(tmp_path, lambda index: index.update(label_pixels={"scene_001": [0, 192]}))
    with pytest.raises(UserError, match=r"index\.json: label_pixels: expected all samples in their order"):
        open_shards(tmp_path)
