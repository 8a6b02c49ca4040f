"""Shards are plain WebDataset tars; the index finds every byte again; damage is named."""

import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.images import decode_image, decode_label
from esl_dist.data.labels import identity_class_set
from esl_dist.data.shard_index import read_index
from esl_dist.data.shards import broken_shards, choose_classes, open_shards, packed_size, verify, write_shard
from esl_dist.errors import CorruptSampleError, UserError
from tests.builders import class_set, draw, drawn_samples, drawn_shards, write_shards

ODD_KEYS = [
    "plain",
    "frankfurt/frankfurt_000000",
    "näher an Ümläuten/ß",
    "図",
    "x" * 99,
    "x" * 150,
    "folder/" * 30 + "deep",
    "ü" * 120,
    "two words",
]


def webdataset_samples(folder: Path) -> list[dict]:
    """Read a folder with WebDataset's own reader, in the order of the shards."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def test_any_sample_can_be_read_at_once_and_in_any_order(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 7, in_a_shard=3)
    assert (len(reader), len(reader.index.shards)) == (7, 3)
    for seed in (6, 0, 3, 2, 5, 1, 4):
        picture, label = draw(seed)
        assert reader.key(seed) == f"scene_{seed:03d}"
        np.testing.assert_array_equal(decode_image(reader.read(seed, "image")), picture)
        np.testing.assert_array_equal(decode_label(reader.read(seed, "label.png")), label)
    assert list(reader.keys()) == [f"scene_{seed:03d}" for seed in range(7)]


def test_webdataset_reads_the_same_keys_pictures_and_labels(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 7, in_a_shard=3)
    found = webdataset_samples(tmp_path)
    assert [sample["__key__"] for sample in found] == list(reader.keys())
    for position, sample in enumerate(found):
        assert sample["image.png"] == reader.read(position, "image")
        np.testing.assert_array_equal(decode_image(sample["image.png"]), draw(position)[0])
        np.testing.assert_array_equal(decode_label(sample["label.png"]), draw(position)[1])


def test_odd_and_long_names_keep_their_offsets(tmp_path: Path) -> None:
    """Names over 100 characters or beyond ASCII get headers of their own, which move the bytes."""
    samples = [(key, {"image.png": os.urandom(700 + 100 * n), "label.png": b"l"}) for n, key in enumerate(ODD_KEYS)]
    reader = write_shards(tmp_path, samples, in_a_shard=len(samples))
    found = webdataset_samples(tmp_path)
    assert [sample["__key__"] for sample in found] == ODD_KEYS
    for position, (_, members) in enumerate(samples):
        assert reader.read(position, "image") == members["image.png"] == found[position]["image.png"]
        assert reader.read(position, "label") == b"l"


keys = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="./"), min_size=1, max_size=130)
contents = st.dictionaries(
    st.sampled_from(["image.png", "label.png", "a", "b.c.d"]), st.binary(max_size=1100), min_size=1
)


@settings(max_examples=40, deadline=None)
@given(samples=st.lists(st.tuples(keys, contents), min_size=1, max_size=4, unique_by=lambda one: one[0]))
def test_offsets_and_sizes_are_those_of_the_tar(tmp_path_factory: pytest.TempPathFactory, samples: list) -> None:
    path = tmp_path_factory.mktemp("shard") / "shard-000000.tar"
    entry = write_shard(path, samples)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        stored = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    for (key, members), sample in zip(samples, entry.samples, strict=True):
        for extension, (offset, count, _) in sample.members.items():
            assert content[offset : offset + count] == members[extension]
            assert f"{key}.{extension}" in stored
    used = sum(packed_size(key, members) for key, members in samples)
    record = tarfile.RECORDSIZE
    assert entry.size == len(content) == -(-(used + 2 * tarfile.BLOCKSIZE) // record) * record


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    drawn_shards(tmp_path / "a", 4)
    drawn_shards(tmp_path / "b", 4)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_tar_names_no_owner_and_no_time(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 1)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield from drawn_samples(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "shard-000000.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_the_index_comes_back(tmp_path: Path) -> None:
    made_with = {"size": [8, 6], "image_format": "keep"}
    reader = write_shards(tmp_path, drawn_samples(2), image_size=(8, 6), made_with=made_with)
    index = read_index(tmp_path)
    assert index == reader.index
    assert (index.image_size, index.label_size, index.made_with) == ((8, 6), None, made_with)
    assert index.class_sets == {"village3": class_set()}


def test_a_copy_in_another_process_opens_its_own_files(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 2)
    expected = reader.read(1, "image")
    copy = pickle.loads(pickle.dumps(reader))
    assert copy == reader
    assert copy.read(1, "image") == expected
    assert copy._opened.cache_info().currsize == 1, "the shard that it has read, and none of the other's"


class LeavesFile:
    """Makes an empty file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("ending", ["png", "pickle"])
def test_code_in_a_shard_is_not_executed(ending: str, tmp_path: Path) -> None:
    left, code = tmp_path / "left", pickle.dumps(LeavesFile(tmp_path / "left"))
    reader = write_shards(tmp_path / "shards", [("a", {f"image.{ending}": code, f"label.{ending}": code})])
    for kind, read in {"image": decode_image, "label": decode_label}.items():
        assert reader.read(0, kind) == code
        with pytest.raises(ValueError, match="not a readable picture"):
            read(reader.read(0, kind))
    assert not left.exists()
    pickle.loads(code)
    assert left.exists(), "it is as bad as it is meant to be"


def test_the_fingerprint_knows_samples_and_order_but_not_the_place(tmp_path: Path) -> None:
    first = drawn_shards(tmp_path / "a", 4).fingerprint()
    assert drawn_shards(tmp_path / "b", 4).fingerprint() == first
    assert drawn_shards(tmp_path / "c", 3).fingerprint() != first
    assert write_shards(tmp_path / "d", drawn_samples(4)[::-1]).fingerprint() != first


def test_a_missing_and_a_truncated_shard_are_named(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 4, in_a_shard=2)
    path = tmp_path / "shard-000001.tar"
    content = path.read_bytes()
    lost = "of its 2 samples are lost"
    for size, damage in {
        10239: f"has 10239 bytes, the index says 10240; 0 {lost};",
        # Its label is the last that a sample has: cut behind it, the sample is whole and the next one is lost.
        sum(label_of(tmp_path, "scene_002")): rf"has \d+ bytes, the index says 10240; 1 {lost}, 'scene_003' first;",
        sum(label_of(tmp_path, "scene_002")) - 1: rf"has \d+ bytes, .* 10240; 2 {lost}, 'scene_002' first;",
        sum(label_of(tmp_path, "scene_003")): rf"has \d+ bytes, the index says 10240; 0 {lost};",
        # The second sample's label begins behind its picture, and its headers are whole blocks.
        label_of(tmp_path, "scene_003")[0]: rf"has \d+ bytes, the index says 10240; 1 {lost}, 'scene_003' first;",
        1: f"has 1 bytes, the index says 10240; 2 {lost}, 'scene_002' first;",
    }.items():
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"shard-000001\.tar: {damage} pack the data set again"):
            open_shards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"000001\.tar: is missing, .* 10240; 2 {lost}, 'scene_002' first; pack"):
        open_shards(tmp_path)


def label_of(folder: Path, key: str) -> tuple[int, int]:
    """Return where a sample's label begins in its shard, and how many bytes it has."""
    [sample] = [one for shard in read_index(folder).shards for one in shard.samples if one.key == key]
    return sample.members["label.png"][:2]


def test_what_broken_shards_still_hold_can_be_read_if_they_need_not_be_whole(tmp_path: Path) -> None:
    expected = drawn_shards(tmp_path, 6, in_a_shard=2).read(2, "image")
    os.truncate(tmp_path / "shard-000001.tar", label_of(tmp_path, "scene_003")[0])
    (tmp_path / "shard-000002.tar").unlink()
    reader = open_shards(tmp_path, whole=False)
    assert [shard.lost for shard in broken_shards(reader)] == [1, 2]
    assert len(reader) == 6
    assert reader.read(2, "image") == expected
    with pytest.raises(CorruptSampleError, match=r"000001\.tar, sample 'scene_003': the bytes of label\.png are not"):
        reader.read(3, "label")
    with pytest.raises(CorruptSampleError, match=r"000002\.tar, sample 'scene_004': the shard is missing; pack it"):
        reader.read(4, "image")


def test_what_lies_before_a_cut_is_not_lost_by_a_single_byte(tmp_path: Path) -> None:
    label = drawn_shards(tmp_path, 2).read(0, "label")
    end = sum(label_of(tmp_path, "scene_000"))
    for size, lost in ((end, 1), (end - 1, 2)):
        os.truncate(tmp_path / "shard-000000.tar", size)
        reader = open_shards(tmp_path, whole=False)
        assert [shard.lost for shard in broken_shards(reader)] == [lost]
        if lost == 1:
            assert reader.read(0, "label") == label
        else:
            with pytest.raises(CorruptSampleError, match=r"sample 'scene_000': the bytes of label\.png are not the"):
                reader.read(0, "label")


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 1)
    (tmp_path / "shard-000000.tar").unlink()
    os.mkfifo(tmp_path / "shard-000000.tar")
    with pytest.raises(UserError, match=r"shard-000000\.tar: is missing"):
        open_shards(tmp_path)
    with pytest.raises(UserError, match=r"shard-000000\.tar, sample 'scene_000': cannot be read"):
        reader.read(0, "image")


def test_a_shard_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 1)
    os.truncate(tmp_path / "shard-000000.tar", 600)
    with pytest.raises(
        CorruptSampleError,
        match=r"shard-000000\.tar, sample 'scene_000': the bytes of image\.png are not the packed ones",
    ):
        reader.read(0, "image")


def test_a_flipped_bit_is_found_when_the_sample_is_read_and_others_are_still_read(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 2)
    (offset, _, _) = reader.index.shards[0].samples[1].members["label.png"]
    path = tmp_path / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-000000\.tar, sample 'scene_001': the bytes of label\.png are not the"):
        reader.read(1, "label")
    assert reader.read(1, "image")
    assert reader.read(0, "label")


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    reader = drawn_shards(tmp_path, 4, in_a_shard=2)
    verify(reader)
    path = tmp_path / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-000001\.tar: its bytes are not those that were packed"):
        verify(open_shards(tmp_path))


def test_a_missing_member_is_named_with_those_there_are(tmp_path: Path) -> None:
    reader = write_shards(tmp_path, [("a/b", {"image.png": b"x", "imagery": b"y"})])
    with pytest.raises(UserError, match=r"shard-000000\.tar, sample 'a/b': no label; it has image\.png, imagery"):
        reader.read(0, "label")
    with pytest.raises(UserError, match="no imag;"):
        reader.read(0, "imag")


def test_a_class_set_is_chosen_by_name_or_the_first(tmp_path: Path) -> None:
    sets = {"second": identity_class_set(class_set()), "first": class_set()}
    reader = write_shards(tmp_path, drawn_samples(1), class_sets=sets)
    assert choose_classes(reader, None) == ("second", sets["second"])
    assert choose_classes(open_shards(tmp_path), "first") == ("first", sets["first"])
    with pytest.raises(UserError, match=rf"{tmp_path.name}: no class set 'third'; it has second, first"):
        choose_classes(reader, "third")
