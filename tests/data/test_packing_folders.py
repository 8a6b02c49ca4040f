"""What packing removes from the folder it packs into: its own leftovers when it writes, never what others put there."""

import os
from pathlib import Path

import pytest

from esl_dist.data import folders
from esl_dist.data.layouts import Layout
from esl_dist.data.packing import Encoding, Packed, pack
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import open_shards, verify
from esl_dist.errors import UserError
from tests.builders import drawn_shards, no_progress
from tests.data.packs import contents

OTHERS = ("download.tar.partial", "shard-mine.tar", "repacked-mine.tar", "shard-7.tar", "notes.txt")
SHARD = 20480

pytestmark = pytest.mark.usefixtures("in_this_process")


def packed(layout: Layout, folder: Path, anew: bool = False, image_format: str = "keep") -> Packed:
    return pack(layout, folder, Encoding(None, None, image_format, 95, SHARD), 1, no_progress, anew)


def put(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


def test_files_of_others_stay_whatever_packing_does(layout: Layout, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, *OTHERS)
    (out / "a.tar.partial").mkdir()
    (out / "shard-000099.tar").mkdir()
    before = {name: (out / name).read_bytes() for name in OTHERS}
    assert packed(layout, out).anew
    assert not packed(layout, out).anew
    with pytest.raises(UserError, match="image_format"):
        packed(layout, out, image_format="jpg")
    assert packed(layout, out, True, "jpg").anew
    assert {name: (out / name).read_bytes() for name in OTHERS} == before
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"a.tar.partial", "shard-000099.tar"}


def test_a_refused_packing_removes_nothing(layout: Layout, tmp_path: Path) -> None:
    left = ("shard-000009.tar", "repacked-000000.tar", "shard-000000.tar.partial", "index.json.partial")
    drawn_shards(tmp_path / "pseudo", 1)
    packed(layout, tmp_path / "other", image_format="jpg")
    layout.pairs[1].label.write_bytes(b"x")
    put(tmp_path / "first")
    for name in ("pseudo", "other", "first"):
        put(tmp_path / name, *left)
        before = contents(tmp_path / name)
        with pytest.raises(UserError):
            packed(layout, tmp_path / name)
        assert contents(tmp_path / name) == before, name


def interrupted(layout: Layout, out: Path) -> None:
    """Leave what a kill leaves right after the moment of change: replacements that the index names, and old shards."""
    packed(layout, out, image_format="jpg")

    def kill(*_: object) -> None:
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "remove_leftovers", kill)
        with pytest.raises(InterruptedError):
            packed(layout, out, anew=True)
    assert "repacked-000000.tar" in (out / INDEX_NAME).read_text()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 10)])
def test_old_shards_stay_where_a_replacement_is_lost(layout: Layout, tmp_path: Path, damage: object) -> None:
    out = tmp_path / "out"
    interrupted(layout, out)
    damage(out / "repacked-000001.tar")
    before = contents(out)
    with pytest.raises(UserError, match=r"repacked-000001\.tar: .*; repack=true packs it again$"):
        packed(layout, out)
    assert contents(out) == before
    assert packed(layout, out, anew=True).anew
    packed(layout, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    verify(open_shards(out))


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("index", ["{", "[]", '{"format": "esl-dist shards", "format_version": 1}'])
def test_an_index_that_cannot_be_read_is_left_with_the_way_out(
    layout: Layout, tmp_path: Path, index: str, anew: bool
) -> None:
    out = tmp_path / "out"
    packed(layout, out)
    whole = contents(out)
    (out / INDEX_NAME).write_text(index)
    with pytest.raises(UserError, match=r"delete .*out/index\.json to have its folder packed again"):
        packed(layout, out, anew)
    (out / INDEX_NAME).unlink()
    assert packed(layout, out, anew).anew
    assert contents(out) == whole


def test_a_lock_that_cannot_be_made_is_told_unless_the_folder_may_only_be_read(layout: Layout, tmp_path: Path) -> None:
    put(tmp_path / "folder")
    (tmp_path / "folder/.lock").mkdir()
    put(tmp_path / "link")
    (tmp_path / "link/.lock").symlink_to(tmp_path / "absent/lock")
    for name in ("folder", "link"):
        with pytest.raises(
            UserError, match=rf"{name}/\.lock: cannot be created or locked, which keeps a second packing"
        ):
            packed(layout, tmp_path / name)
        assert not (tmp_path / name / INDEX_NAME).exists()
