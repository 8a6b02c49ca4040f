"""Packing where sizes differ: pairs that are left out, pictures that keep their aspect ratio; labels in a channel."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from esl_dist.data import packing
from esl_dist.data.images import decode_image, decode_label, encode_png, resize_image, resize_label
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.loading import Samples, label_source
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.shard_index import ShardIndex, read_index
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from tests.builders import SPLIT, class_set, draw, no_progress, write_description, write_pictures
from tests.programs import run

AS_THEY_ARE = Encoding(size=None, label_size=None, image_format="keep", jpg_quality=95)
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def _no_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "worker_processes", lambda _: nullcontext(map))


def packed(layout: Layout, folder: Path, encoding: Encoding = AS_THEY_ARE) -> ShardIndex:
    return pack(layout, folder, encoding, 1, no_progress).index


def with_other_sizes(folder: Path, *names: str, **description: Any) -> Layout:
    """Draw pictures, of which those in `names` have a label of another size, and read their layout."""
    write_pictures(folder, NAMES)
    for seed, name in enumerate(names):
        (folder / SPLIT / f"labels/{name}.png").write_bytes(encode_png(draw(seed, 12, 16)[1]))
    return read_layout(write_description(folder, **description), SPLIT)


def of_many_sizes(folder: Path, sizes: dict[str, tuple[int, int]], **description: Any) -> Layout:
    for name, (width, height) in sizes.items():
        write_pictures(folder, [name], width, height)
    return read_layout(write_description(folder, **description), SPLIT)


def keys(folder: Path) -> list[str]:
    return list(open_shards(folder).keys())


def test_a_pair_of_two_sizes_is_refused_unless_the_description_says_otherwise(tmp_path: Path) -> None:
    for number, description in enumerate(({}, {"skip_other_sizes": False})):
        layout = with_other_sizes(tmp_path / "pictures", "b", **description)
        with pytest.raises(
            UserError, match=r"^1 samples cannot be packed; nothing was written:\n.*labels/b\.png: 12×16"
        ):
            packed(layout, tmp_path / str(number))
        assert not (tmp_path / str(number)).exists()


def test_pairs_of_two_sizes_are_left_out_and_listed(tmp_path: Path) -> None:
    layout = with_other_sizes(tmp_path / "pictures", "d", "b", skip_other_sizes=True)
    index = packed(layout, tmp_path / "out")
    assert index.made_with["skipped"] == ["b", "d"]
    assert read_index(tmp_path / "out") == index
    assert keys(tmp_path / "out") == ["a", "c"]
    assert (index.image_size, index.label_size) == ((16, 12), (16, 12)), "those left out are no other size"
    reader = open_shards(tmp_path / "out")
    for position, seed in enumerate((0, 2)):
        np.testing.assert_array_equal(decode_image(reader.read(position, "image")), draw(seed)[0])
        np.testing.assert_array_equal(decode_label(reader.read(position, "label")), draw(seed)[1])


def test_without_such_pairs_nothing_is_left_out(tmp_path: Path) -> None:
    index = packed(with_other_sizes(tmp_path / "pictures", skip_other_sizes=True), tmp_path / "out")
    assert index.made_with["skipped"] == []
    assert keys(tmp_path / "out") == NAMES


def test_packing_again_only_verifies_also_where_pairs_were_left_out(tmp_path: Path) -> None:
    layout = with_other_sizes(tmp_path / "pictures", "b", skip_other_sizes=True)
    first = packed(layout, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert packed(layout, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    write_pictures(tmp_path / "pictures", [*NAMES, "e"])
    other = read_layout(write_description(tmp_path / "pictures", skip_other_sizes=True), SPLIT)
    with pytest.raises(UserError, match="out: holds shards of other files or settings"):
        packed(other, tmp_path / "out")


def test_other_mistakes_are_reported_without_the_pairs_that_are_left_out(tmp_path: Path) -> None:
    layout = with_other_sizes(tmp_path / "pictures", "b", skip_other_sizes=True)
    layout.pairs[2].label.write_bytes(b"x")
    with pytest.raises(UserError, match=r"^1 samples cannot be packed; nothing was written:\n  .*labels/c\.png[^\n]*$"):
        packed(layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    layout = with_other_sizes(tmp_path / "pictures", *NAMES, skip_other_sizes=True)
    with pytest.raises(UserError, match=r"out: no picture of village has the size of its label; nothing was written"):
        packed(layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_program_counts_what_is_left_out_in_one_warning_every_time(tmp_path: Path) -> None:
    names = [f"s{number:02d}" for number in range(13)]
    write_pictures(tmp_path / "pictures", names, 4, 3)
    for name in names[1:]:
        (tmp_path / "pictures" / SPLIT / f"labels/{name}.png").write_bytes(encode_png(draw(0, 5, 3)[1]))
    description = write_description(tmp_path / "pictures", skip_other_sizes=True)
    words = [f"dataset={description}", f"split={SPLIT}", f"output={tmp_path}/out", "processes=1"]
    warning = (
        f"warning: 12 pictures are left out, for their labels have another size: {', '.join(names[1:11])}, … "
        "(all of them: made_with in index.json)"
    )
    for state in ("", "already packed and current: "):
        done = run("shards/prepare.py", *words)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "warning" in line] == [warning]
        assert re.match(rf"{tmp_path}/out: {state}1 samples in 1 shards, 0\.0 MB\n  took .*\n  next ", done.stdout)


@pytest.mark.parametrize("label_size", [None, (10, 10)])
def test_pictures_that_keep_their_aspect_ratio_are_packed_without_padding(
    tmp_path: Path, label_size: tuple[int, int] | None
) -> None:
    sizes = {"broad": (40, 10), "high": (10, 40), "like the frame": (40, 30), "small": (4, 3)}
    layout = of_many_sizes(tmp_path / "pictures", sizes, keep_aspect_ratio=True)
    index = packed(layout, tmp_path / "out", Encoding((20, 15), label_size, "keep", 95))
    assert (index.keep_aspect_ratio, index.image_size, index.label_size) == (True, None, None)
    reader = open_shards(tmp_path / "out")
    assert reader.index.keep_aspect_ratio
    fitted = [(20, 5), (3, 15), (20, 15), (20, 15)]
    labels = list(sizes.values()) if label_size is None else [(10, 2), (2, 10), (10, 7), (10, 7)]
    for position, (size, image_size, own_label_size) in enumerate(zip(sizes.values(), fitted, labels, strict=True)):
        picture, label = draw(0, *size)
        stored = decode_image(reader.read(position, "image"))
        np.testing.assert_array_equal(stored, resize_image(picture, image_size))
        stored_label = decode_label(reader.read(position, "label"))
        np.testing.assert_array_equal(stored_label, resize_label(label, own_label_size))


@pytest.mark.parametrize("keep", [False, True], ids=["stretched", "fitted"])
@pytest.mark.parametrize("label_size", [None, (13, 11)])
def test_pictures_packed_at_the_size_of_the_training_have_the_pixels_of_those_resized_when_read(
    tmp_path: Path, keep: bool, label_size: tuple[int, int] | None
) -> None:
    sizes = {"broad": (40, 10), "high": (10, 40), "large": (61, 47), "small": (4, 3), "as it is": (20, 15)}
    layout = of_many_sizes(tmp_path / "pictures", sizes, keep_aspect_ratio=keep)
    frame = (20, 15)
    samples = []
    for name, encoding in (("whole", AS_THEY_ARE), ("at size", Encoding(frame, label_size, "keep", 95))):
        packed(layout, tmp_path / name, encoding)
        reader = open_shards(tmp_path / name)
        samples.append(Samples(reader, frame, label_source(reader, "village3", class_set()), label_size))
    for position in range(len(sizes)):
        whole, at_size = (each[position] for each in samples)
        for key in ("pictures", "labels", "valid_pixels", "label_sizes"):
            assert torch.equal(whole[key], at_size[key]), (position, key)


def test_pictures_of_one_aspect_ratio_have_a_common_size_and_are_copied_where_they_fit(tmp_path: Path) -> None:
    sizes = {"full": (20, 10), "half": (10, 5)}
    layout = of_many_sizes(tmp_path / "pictures", sizes, keep_aspect_ratio=True)
    index = packed(layout, tmp_path / "out", Encoding((20, 15), (10, 10), "keep", 95))
    assert (index.image_size, index.label_size) == ((20, 10), (10, 5))
    assert open_shards(tmp_path / "out").read(0, "image") == layout.pairs[0].image.read_bytes()


def test_stretched_and_fitted_pictures_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Here both have the same bytes; read at another size they would differ."""
    for keep in (False, True):
        packed(with_other_sizes(tmp_path / "pictures", keep_aspect_ratio=keep), tmp_path / str(keep))
    assert not read_index(tmp_path / "False").keep_aspect_ratio
    for keep in (False, True):
        layout = with_other_sizes(tmp_path / "pictures", keep_aspect_ratio=keep)
        with pytest.raises(UserError, match="holds shards of other files or settings"):
            packed(layout, tmp_path / str(not keep))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channel", "place"), [("blue", 0), ("green", 1), ("red", 2)])
def test_labels_in_a_channel_are_packed_as_that_channel(tmp_path: Path, kind: type, channel: str, place: int) -> None:
    """The other channels hold instances, which are no raw ids of the description."""
    write_pictures(tmp_path / "pictures", NAMES)
    for seed, name in enumerate(NAMES):
        colors = np.full((12, 16, 3), 99, kind)
        colors[:, :, place] = draw(seed)[1]
        done, content = cv2.imencode(".png", colors)
        assert done
        (tmp_path / "pictures" / SPLIT / f"labels/{name}.png").write_bytes(content.tobytes())
    file = write_description(tmp_path / "pictures", label_channel=channel)
    packed(read_layout(file, SPLIT), tmp_path / "out", Encoding(None, (8, 6), "keep", 95))
    reader = open_shards(tmp_path / "out")
    for position in range(len(NAMES)):
        stored = decode_label(reader.read(position, "label"))
        assert stored.dtype == kind
        np.testing.assert_array_equal(stored, resize_label(draw(position)[1], (8, 6)))


def test_labels_in_a_channel_are_checked_in_that_channel(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ["colour", "grey"])
    colors = np.full((12, 16, 3), 7, np.uint8)
    colors[0, 0, 2] = 99
    (tmp_path / "pictures" / SPLIT / "labels/colour.png").write_bytes(encode_png(colors))
    layout = read_layout(write_description(tmp_path / "pictures", label_channel="red"), SPLIT)
    with pytest.raises(
        UserError, match=r"colour\.png: raw ids \[99\] are in no class.*\n.*grey\.png: a label with one channel"
    ):
        packed(layout, tmp_path / "out")
