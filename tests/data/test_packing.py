"""Packing: the same bytes every time, and nothing written for bad input."""

import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from esl_dist.data import packing
from esl_dist.data.images import decode_image, decode_label, encode_png, resize_image, resize_label
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.shard_index import ShardIndex
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from tests.builders import SPLIT, draw, encoded, no_progress, write_description, write_pictures
from tests.data.packs import as_read, contents

PROJECT = Path(__file__).resolve().parents[2]
AS_THEY_ARE = Encoding(size=None, label_size=None, image_format="keep", jpg_quality=95)
NAMES = [f"street_{number}" for number in range(9)]

HERE = 0
"""A number of processes that means: none but this one. Each takes a second to start; most tests are not about them."""


@pytest.fixture(autouse=True)
def _no_processes_where_none_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started, affordable = packing.worker_processes, packing.affordable
    monkeypatch.setattr(packing, "affordable", lambda number, *others: number and affordable(number, *others))
    monkeypatch.setattr(
        packing, "worker_processes", lambda number: nullcontext(map) if number == HERE else started(number)
    )


def packed(
    layout: Layout,
    folder: Path,
    encoding: Encoding = AS_THEY_ARE,
    size: int = 20480,
    processes: int = HERE,
) -> ShardIndex:
    return pack(layout, folder, replace(encoding, shard_bytes=size), processes, no_progress).index


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return read_layout(write_pictures(tmp_path / "pictures", NAMES, width=48, height=32), SPLIT)


def one_picture(folder: Path, image: str, content: bytes) -> Layout:
    """Return a layout of one sample named `a`, whose picture is the file `image` with `content`."""
    write_pictures(folder, ["a"])
    (folder / SPLIT / "images/a.png").unlink()
    (folder / SPLIT / "images" / image).write_bytes(content)
    suffix = Path(image).suffix
    return read_layout(write_description(folder, image=f"{{split}}/images/{{name}}{suffix}"), SPLIT)


def test_one_two_or_no_processes_give_the_same_bytes(layout: Layout, tmp_path: Path) -> None:
    index = packed(layout, tmp_path / "none")
    assert len(index.shards) > 2
    for processes in (1, 2):
        packed(layout, tmp_path / str(processes), processes=processes)
        assert contents(tmp_path / str(processes)) == contents(tmp_path / "none")


@pytest.mark.parametrize("size", [None, (20, 14)])
def test_the_index_counts_the_pixels_of_each_raw_id_as_the_label_is_packed(
    layout: Layout, tmp_path: Path, size: tuple[int, int] | None
) -> None:
    counted = packed(layout, tmp_path, replace(AS_THEY_ARE, label_size=size)).label_pixels
    assert counted is not None
    shards = open_shards(tmp_path)
    assert shards.index.label_pixels == counted
    for position, (key, pixels) in enumerate(counted.items()):
        assert key == shards.key(position)
        label = decode_label(shards.read(position, "label"))
        assert pixels == {one: int((label == one).sum()) for one in sorted(set(label.ravel().tolist()))}


def test_the_program_packs_as_the_function_does(layout: Layout, tmp_path: Path) -> None:
    words = [f"dataset={tmp_path}/pictures/village.yaml", f"split={SPLIT}", f"output={tmp_path}/out", "processes=2"]
    command = [sys.executable, str(PROJECT / "shards/prepare.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "9 samples in 1 shards" in done.stdout
    packed(layout, tmp_path / "expected", size=256 * 10**6)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_packing_twice_gives_the_same_bytes(layout: Layout, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        packed(layout, tmp_path / folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_files_are_kept_and_webdataset_reads_them(layout: Layout, tmp_path: Path) -> None:
    index = packed(layout, tmp_path / "out")
    assert (index.image_size, index.label_size) == ((48, 32), (48, 32))
    urls = [str(tmp_path / "out" / shard.name) for shard in index.shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == NAMES
    for seed, (sample, pair) in enumerate(zip(found, layout.pairs, strict=True)):
        assert sample["image.png"] == pair.image.read_bytes()
        np.testing.assert_array_equal(decode_label(sample["label.png"]), draw(seed, 48, 32)[1])


@pytest.mark.parametrize("shard_bytes", [1, 10240, 20480, 30719, 50_000, 10**6])
def test_no_shard_is_larger_than_asked_unless_one_sample_is(layout: Layout, tmp_path: Path, shard_bytes: int) -> None:
    index = packed(layout, tmp_path / "out", size=shard_bytes)
    assert [sample.key for shard in index.shards for sample in shard.samples] == NAMES
    for shard in index.shards:
        assert (tmp_path / "out" / shard.name).stat().st_size == shard.size
        assert shard.size <= shard_bytes or len(shard.samples) == 1
    assert len(index.shards) == {1: 9, 10**6: 1}.get(shard_bytes, len(index.shards))


def test_long_names_count_for_the_size_of_a_shard(tmp_path: Path) -> None:
    """Their headers take more than these pictures do."""
    names = [f"{number}{'ü' * 60}" for number in range(30)]
    layout = read_layout(write_pictures(tmp_path / "pictures", names, width=2, height=2), SPLIT)
    index = packed(layout, tmp_path / "out", size=30720)
    assert len(index.shards) > 1
    assert max(shard.size for shard in index.shards) <= 30720


def test_dots_in_names_become_underscores_and_other_signs_stay(tmp_path: Path) -> None:
    names = ["a.b.c", "münchen/x_1", "y" * 120]
    layout = read_layout(write_pictures(tmp_path / "pictures", names), SPLIT)
    assert len(layout.pairs) == 2, "`*` does not reach into folders"
    description = write_description(tmp_path / "pictures", splits={SPLIT: {"names": ["*", "*/*"]}})
    packed(read_layout(description, SPLIT), tmp_path / "out")
    reader = open_shards(tmp_path / "out")
    assert list(reader.keys()) == ["a_b_c", "münchen/x_1", "y" * 120]
    for position, name in enumerate(names):
        assert reader.read(position, "image") == (tmp_path / f"pictures/train/images/{name}.png").read_bytes()
    found = webdataset.WebDataset(str(tmp_path / "out" / "shard-000000.tar"), shardshuffle=False)
    assert [sample["__key__"] for sample in found] == list(reader.keys())


def test_names_that_would_have_one_key_are_refused(tmp_path: Path) -> None:
    description = write_pictures(tmp_path / "pictures", ["a.b", "a_b"])
    with pytest.raises(UserError, match=r"samples 'a\.b' and 'a_b' would both have the key 'a_b'"):
        read_layout(description, SPLIT)


def test_pictures_and_labels_are_resized_each_in_its_way(layout: Layout, tmp_path: Path) -> None:
    index = packed(layout, tmp_path / "out", Encoding((10, 8), (6, 4), "keep", 95))
    assert (index.image_size, index.label_size) == ((10, 8), (6, 4))
    reader = open_shards(tmp_path / "out")
    for position in range(len(NAMES)):
        picture, label = draw(position, 48, 32)
        np.testing.assert_array_equal(decode_image(reader.read(position, "image.png")), resize_image(picture, (10, 8)))
        np.testing.assert_array_equal(decode_label(reader.read(position, "label")), resize_label(label, (6, 4)))


def test_pictures_of_many_sizes_have_no_common_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ["b"], width=20)
    layout = read_layout(write_pictures(tmp_path / "pictures", ["a"], width=30), SPLIT)
    index = packed(layout, tmp_path / "out")
    assert (index.image_size, index.label_size) == (None, None)


@pytest.mark.parametrize("image", ["a.jpg", "a.JPG", "a.jpeg"])
def test_a_jpeg_is_copied_with_its_tags_or_written_anew(tmp_path: Path, image: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(draw(0)[0], "JPEG", exif=exif)
    layout = as_read(one_picture(tmp_path / "pictures", image, content), exif_orientation="ignore")
    for name, encoding, same, extension in (
        ("kept", AS_THEY_ARE, True, "image.jpg"),
        ("png", Encoding(None, None, "png", 95), False, "image.png"),
        ("jpg", Encoding(None, None, "jpg", 50), False, "image.jpg"),
    ):
        packed(layout, tmp_path / name, encoding)
        stored = open_shards(tmp_path / name).read(0, extension)
        assert (stored == content) == same
        assert decode_image(stored).shape == (12, 16, 3)


def test_a_picture_turned_by_its_tag_is_written_anew(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    layout = one_picture(tmp_path / "pictures", "a.png", encoded(draw(0)[0], exif=exif))
    turned = np.rot90(draw(0)[0], -1)
    layout.pairs[0].label.write_bytes(encode_png(np.ascontiguousarray(np.rot90(draw(0)[1], -1))))
    with pytest.raises(UserError, match=r"images/a\.png: carries EXIF orientation 6"):
        packed(layout, tmp_path / "out")
    index = packed(as_read(layout, exif_orientation="apply"), tmp_path / "out")
    assert (index.image_size, index.made_with["exif_orientation"]) == ((12, 16), "apply")
    stored = open_shards(tmp_path / "out").read(0, "image.png")
    np.testing.assert_array_equal(decode_image(stored), turned[:, :, ::-1])
    assert not Image.open(BytesIO(stored)).getexif()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "JPEG"])
def test_a_member_is_named_after_its_content_not_after_its_file(tmp_path: Path, kind: str) -> None:
    layout = one_picture(tmp_path / "pictures", "a.png", encoded(draw(0)[0], kind))
    packed(layout, tmp_path / "out")
    stored = open_shards(tmp_path / "out").read(0, "image.jpg" if kind == "JPEG" else "image.png")
    assert Image.open(BytesIO(stored)).format == ("JPEG" if kind == "JPEG" else "PNG")


def test_a_picture_that_is_too_long_for_a_jpeg_is_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ["a"], width=65_501, height=1)
    layout = read_layout(tmp_path / "pictures/village.yaml", SPLIT)
    with pytest.raises(UserError, match=r"images/a\.png: 65501×1 pixels; a JPEG has at most 65500 a side"):
        packed(layout, tmp_path / "out", Encoding(None, None, "jpg", 95))
    packed(layout, tmp_path / "out")


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"9 samples .*\n.*48×32 pixels, more than 0\.001535 megapixels; raise largest_"
    ):
        packed(as_read(layout, largest_pixels=48 * 32 - 1), tmp_path / "out")
    packed(as_read(layout, largest_pixels=48 * 32), tmp_path / "out")


def test_labels_painted_in_the_classes_colours_are_packed_as_ids(layout: Layout, tmp_path: Path) -> None:
    colors = np.zeros((24, 3), np.uint8)
    for item in layout.class_sets["village3"]:
        colors[item.ids[0]] = item.color
    ids = np.array([item.ids[0] for item in layout.class_sets["village3"]], np.uint8)[draw(0, 48, 32)[1] % 3]
    for pair in layout.pairs:
        pair.label.write_bytes(encoded(colors[ids]))
    with pytest.raises(UserError, match=r"`label_colors: true`.*`label_channel: red`"):
        packed(layout, tmp_path / "out")
    colors_of_ids = {item.color: item.ids[0] for item in layout.class_sets["village3"]}
    packed(as_read(layout, colors=colors_of_ids), tmp_path / "out")
    np.testing.assert_array_equal(decode_label(open_shards(tmp_path / "out").read(0, "label.png")), ids)


@pytest.mark.parametrize(
    ("picture", "mode"),
    [(draw(0)[0][:, :, 0], "L"), (np.dstack([draw(0)[0], np.full((12, 16), 255, np.uint8)]), "RGBA")],
)
def test_grey_and_opaque_pictures_can_be_packed(tmp_path: Path, picture: np.ndarray, mode: str) -> None:
    assert Image.fromarray(picture).mode == mode
    layout = one_picture(tmp_path / "pictures", "a.png", encoded(picture))
    packed(layout, tmp_path / "out", Encoding((8, 6), None, "keep", 95))
    assert decode_image(open_shards(tmp_path / "out").read(0, "image")).shape == (6, 8, 3)


def test_labels_of_16_bits_and_palettes_keep_their_raw_ids(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["deep", "palette"])
    ids = draw(3)[1]
    palette = Image.fromarray(ids)
    palette.putpalette(bytes(range(256)) * 3)
    (tmp_path / SPLIT / "labels/palette.png").write_bytes(encoded(palette))
    (tmp_path / SPLIT / "labels/deep.png").write_bytes(encode_png(ids.astype(np.uint16) + 30_000))
    file = write_description(tmp_path, ignore_ids=[0, 30_000, 30_007, 30_011, 30_012, 30_023])
    packed(read_layout(file, SPLIT), tmp_path / "out")
    reader = open_shards(tmp_path / "out")
    np.testing.assert_array_equal(decode_label(reader.read(0, "label")), ids.astype(np.uint16) + 30_000)
    np.testing.assert_array_equal(decode_label(reader.read(1, "label")), ids)


def bad_pictures(folder: Path) -> dict[str, str]:
    """Spoil one picture or label a sample; returns what has to be said of each."""
    images, labels = folder / SPLIT / "images", folder / SPLIT / "labels"
    write_pictures(folder, ["cut", "empty", "good", "ids", "labelcut", "odd", "rgb", "size", "text"], 48, 32)
    jpeg = encoded(draw(0, 48, 32)[0], "JPEG")
    messages = {}
    for name, path, content, message in (
        ("cut", images / "cut.png", jpeg[: len(jpeg) // 2], "not a whole picture"),
        ("empty", labels / "empty.png", b"", "an empty file"),
        ("ids", labels / "ids.png", encode_png(np.full((32, 48), 99, np.uint8)), r"raw ids \[99\] are in no class"),
        ("labelcut", labels / "labelcut.png", encode_png(draw(1, 48, 32)[1])[:300], "not a whole picture"),
        ("odd", images / "odd.png", encoded(draw(1, 48, 32)[0], "PCX"), "not a picture in a format that can be read"),
        ("rgb", labels / "rgb.png", encoded(draw(0, 48, 32)[0]), ".*expected one channel"),
        ("size", labels / "size.png", encode_png(draw(0, 32, 48)[1]), "32×48 pixels, its picture has 48×32"),
        ("text", images / "text.png", b"not found", "not a picture"),
    ):
        path.write_bytes(content)
        messages[name] = rf"{path.parent.name}/{name}\.png: {message}"
    return messages


def test_everything_that_cannot_be_packed_is_named_before_anything_is_written(tmp_path: Path) -> None:
    messages = bad_pictures(tmp_path / "pictures")
    with pytest.raises(UserError) as found:
        packed(read_layout(tmp_path / "pictures/village.yaml", SPLIT), tmp_path / "out")
    lines = str(found.value).splitlines()
    assert lines[0] == "8 samples cannot be packed; nothing was written:"
    assert len(lines) == 9
    for line, message in zip(lines[1:], messages.values(), strict=True):
        assert re.search(message, line), (line, message)
    assert not (tmp_path / "out").exists()


def test_a_user_of_the_program_sees_the_bad_files_and_no_traceback(tmp_path: Path) -> None:
    bad_pictures(tmp_path / "pictures")
    words = [f"dataset={tmp_path}/pictures/village.yaml", f"split={SPLIT}", f"output={tmp_path}/out", "processes=1"]
    command = [sys.executable, str(PROJECT / "shards/prepare.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: 8 samples cannot be packed" in done.stderr
    assert "Traceback" not in done.stderr


def test_many_problems_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    names = [f"s{number:02d}" for number in range(13)]
    layout = read_layout(write_pictures(tmp_path, names), SPLIT)
    for pair in layout.pairs:
        pair.label.write_bytes(b"x")
    with pytest.raises(UserError, match=r"^13 samples cannot.*(?s:.*)s09\.png.*\n  and 3 more$"):
        packed(layout, tmp_path / "out")


def test_a_label_removed_after_the_layout_was_read_is_named(layout: Layout, tmp_path: Path) -> None:
    layout.pairs[4].label.unlink()
    with pytest.raises(UserError, match=r"1 samples cannot be packed(?s:.*)labels/street_4\.png"):
        packed(layout, tmp_path / "out")
