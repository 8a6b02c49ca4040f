"""Packing where something lies already: an interruption leaves nothing half, and what is whole stays."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.packing import Encoding, pack
from esl_dist.data.shard_index import INDEX_NAME, ShardIndex
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from tests.builders import SPLIT, no_progress, write_pictures
from tests.data.packs import contents

AS_THEY_ARE = Encoding(size=None, label_size=None, image_format="keep", jpg_quality=95)

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return pictures for several shards."""
    names = [f"street_{number}" for number in range(9)]
    return read_layout(write_pictures(tmp_path / "pictures", names, width=48, height=32), SPLIT)


def packed(
    layout: Layout, folder: Path, encoding: Encoding = AS_THEY_ARE, size: int = 20480, progress: Any = no_progress
) -> ShardIndex:
    return pack(layout, folder, replace(encoding, shard_bytes=size), 1, progress).index


def interrupted_at(number: int, title: str) -> Any:
    def progress(items: Iterable[Any], total: int, phase: str) -> Iterator[Any]:
        for position, item in enumerate(items):
            if (position, phase) == (number, title):
                raise KeyboardInterrupt
            yield item

    return progress


@pytest.mark.parametrize(("number", "title"), [(4, "checking"), (0, "packing"), (5, "packing"), (8, "packing")])
def test_an_interruption_leaves_whole_shards_without_index_and_the_next_start_completes(
    layout: Layout, tmp_path: Path, number: int, title: str
) -> None:
    packed(layout, tmp_path / "expected")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        packed(layout, out, progress=interrupted_at(number, title))
    left = contents(out) if out.exists() else {}
    assert INDEX_NAME not in left
    assert left.items() <= contents(tmp_path / "expected").items(), "no half file, no other bytes"
    assert bool(left) == (number >= 5)
    packed(layout, out)
    assert contents(out) == contents(tmp_path / "expected")


def test_shards_of_an_interrupted_packing_with_smaller_ones_are_removed(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        packed(layout, tmp_path / "out", size=1, progress=interrupted_at(8, "packing"))
    index = packed(layout, tmp_path / "out", size=10**6)
    assert sorted(contents(tmp_path / "out")) == [INDEX_NAME, *(shard.name for shard in index.shards)]


def test_a_complete_folder_is_only_verified(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out", Encoding((8, 6), None, "keep", 95))
    first = open_shards(tmp_path / "out").index
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert packed(layout, tmp_path / "out", Encoding((8, 6), None, "keep", 95)) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_a_folder_with_other_shards_is_refused_and_left_alone(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out")
    before = contents(tmp_path / "out")
    others = [
        (layout, Encoding((8, 6), None, "keep", 95), 20480),
        (layout, Encoding(None, None, "jpg", 95), 20480),
        (layout, AS_THEY_ARE, 10240),
        (Layout("town", SPLIT, layout.pairs, layout.class_sets, layout.ignore_ids), AS_THEY_ARE, 20480),
        (Layout("village", SPLIT, layout.pairs[1:], layout.class_sets, layout.ignore_ids), AS_THEY_ARE, 20480),
        (Layout("village", SPLIT, layout.pairs, {}, layout.ignore_ids), AS_THEY_ARE, 20480),
    ]
    for other, encoding, size in others:
        with pytest.raises(UserError, match=r"out: holds shards of other files or settings"):
            packed(other, tmp_path / "out", encoding, size)
    assert contents(tmp_path / "out") == before


def test_a_complete_folder_that_was_damaged_says_what_to_do(layout: Layout, tmp_path: Path) -> None:
    index = packed(layout, tmp_path / "out")
    path = tmp_path / "out" / index.shards[1].name
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name}: its bytes are not those .*; repack=true packs it again"):
        packed(layout, tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: is missing, .*; repack=true packs it again"):
        packed(layout, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert packed(layout, tmp_path / "out") == index


def test_a_file_in_the_place_of_the_output_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out: a file; expected a folder"):
        packed(layout, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
