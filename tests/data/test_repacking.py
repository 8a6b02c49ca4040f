"""Packing into a folder that is packed: it is current, or what changed is told, or it is packed anew, never half."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esl_dist.data import folders, packing
from esl_dist.data.images import decode_label, encode_png
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.data.packing import Encoding, Packed, pack
from esl_dist.data.shard_index import INDEX_NAME
from esl_dist.data.shards import open_shards, verify
from esl_dist.errors import UserError
from tests.builders import SPLIT, draw, drawn_shards, encoded, no_progress, write_pictures
from tests.data.packs import STREETS, as_read, contents

AS_THEY_ARE = Encoding(None, None, "keep", 95)
SHARD = 20480

pytestmark = pytest.mark.usefixtures("in_this_process")


def packed(layout: Layout, folder: Path, encoding: Encoding = AS_THEY_ARE, size: int = SHARD) -> Packed:
    return pack(layout, folder, replace(encoding, shard_bytes=size), 1, no_progress)


def repacked(layout: Layout, folder: Path, encoding: Encoding = AS_THEY_ARE, size: int = SHARD) -> Packed:
    return pack(layout, folder, replace(encoding, shard_bytes=size), 1, no_progress, anew=True)


def correct_label(layout: Layout, number: int = 1) -> None:
    """Write another label of the same size in bytes and at the same time, as a careful copy would."""
    file = layout.pairs[number].label
    before = file.stat()
    content = encode_png(draw(100 + number, 48, 32)[1])
    file.write_bytes(content.ljust(before.st_size, b"\0")[: max(before.st_size, len(content))])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def without_sources(folder: Path) -> None:
    """Make a folder's index one of the version that did not note sources."""
    content = json.loads((folder / INDEX_NAME).read_text())
    del content["sources"]
    for name in ("label_colors", "raw_ids_of_colors", "exif_orientation"):
        del content["made_with"][name]
    (folder / INDEX_NAME).write_text(json.dumps(content))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / INDEX_NAME).read_text())
    change(content)
    (folder / INDEX_NAME).write_text(json.dumps(content))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_same_files_elsewhere_are_current(layout: Layout, tmp_path: Path) -> None:
    assert packed(layout, tmp_path / "out").anew
    before = times(tmp_path / "out")
    moved = write_pictures(tmp_path / "moved", STREETS, width=48, height=32)
    for action in (packed, repacked):
        found = action(read_layout(moved, SPLIT), tmp_path / "out")
        assert (found.anew, found.index) == (False, open_shards(tmp_path / "out").index)
    assert times(tmp_path / "out") == before


def change_picture(layout: Layout) -> Layout:
    layout.pairs[0].image.write_bytes(encode_png(draw(50, 48, 32)[0]))
    return layout


def change_labels(layout: Layout) -> Layout:
    for number in range(4):
        correct_label(layout, number)
    return layout


def add_and_remove(layout: Layout) -> Layout:
    first = layout.pairs[0]
    return replace(layout, pairs=(*layout.pairs[1:], replace(first, name="town")))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_picture, r"1 pictures changed \(street_0\)\. repack=true"),
        (change_labels, r"4 labels changed \(street_0, street_1, street_2, …\)\. repack=true"),
        (add_and_remove, r"1 samples added \(town\); 1 samples removed \(street_0\)\. repack=true"),
        (lambda layout: replace(layout, dataset="city", split="val"), r'dataset: "village" → "city"; split: "train" →'),
        (lambda layout: replace(layout, class_sets={}), r"classes of village3\. repack"),
        (lambda layout: replace(layout, ignore_ids=frozenset([3, 200])), r"ignore_ids: \[.*\] → \[3, 200\]\."),
        (lambda layout: as_read(layout, exif_orientation="ignore"), r'exif_orientation: null → "ignore"\.'),
        (
            lambda layout: as_read(layout, colors={(n, 0, 0): 7 for n in range(9)}),
            r"raw_ids_of_colors: null → \[\[0, 0, 0, 7\]",
        ),
        (lambda layout: replace(layout, keep_aspect_ratio=True), r"keep_aspect_ratio: null → true"),
        (
            lambda layout: as_read(change_picture(layout), label_channel="red"),
            r"pictures changed .*; label_channel: null",
        ),
    ],
)
def test_what_changed_is_told_and_nothing_touched_until_it_is_asked_for(
    layout: Layout, tmp_path: Path, change: Callable[[Layout], Layout], told: str
) -> None:
    packed(layout, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=rf"out: holds shards of other files or settings: .*{told}"):
        packed(change(layout), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_other_settings_are_told_with_their_old_and_new_values(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out")
    message = r"size: null → \[8, 6\]; shard_bytes: 20480 → 10240\. repack"
    with pytest.raises(UserError, match=message):
        packed(layout, tmp_path / "out", Encoding((8, 6), None, "keep", 50), 10240)


def test_the_order_of_class_sets_is_a_change_for_the_first_is_taken_by_default(layout: Layout, tmp_path: Path) -> None:
    [(name, classes)] = layout.class_sets.items()
    packed(replace(layout, class_sets={name: classes, "other": classes}), tmp_path / "out")
    with pytest.raises(UserError, match=rf"order of class sets: {name}, other → other, {name}\. repack"):
        packed(replace(layout, class_sets={"other": classes, name: classes}), tmp_path / "out")


def test_settings_that_change_no_byte_are_no_change(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out")
    assert not packed(layout, tmp_path / "out", Encoding(None, None, "keep", 50)).anew
    unlabelled = replace(layout, pairs=tuple(replace(pair, label=None) for pair in layout.pairs), class_sets={})
    packed(unlabelled, tmp_path / "unlabelled")
    other = as_read(replace(unlabelled, skip_other_sizes=True, ignore_ids=frozenset([9])), label_channel="red")
    assert not packed(other, tmp_path / "unlabelled", Encoding(None, (8, 6), "keep", 95)).anew
    packed(layout, tmp_path / "jpg", Encoding(None, None, "jpg", 95))
    with pytest.raises(UserError, match=r"settings: jpg_quality: 95 → 50\. repack"):
        packed(layout, tmp_path / "jpg", Encoding(None, None, "jpg", 50))


def test_an_index_that_did_not_note_ignore_ids_is_not_held_to_them(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out")
    edit_index(tmp_path / "out", lambda index: index["made_with"].pop("ignore_ids"))
    edit_index(tmp_path / "out", lambda index: index["made_with"].update(jpg_quality=80))
    assert not packed(layout, tmp_path / "out").anew


def test_names_of_an_earlier_version_in_another_unicode_form_are_the_same(layout: Layout, tmp_path: Path) -> None:
    def named(form: str) -> Layout:
        first = replace(layout.pairs[0], name=unicodedata.normalize(form, "é"))
        return replace(layout, pairs=(*layout.pairs[1:], first))

    packed(named("NFD"), tmp_path / "out")
    assert not packed(named("NFC"), tmp_path / "out").anew


def test_a_label_that_was_left_out_and_then_mended_is_a_change(layout: Layout, tmp_path: Path) -> None:
    layout = replace(layout, skip_other_sizes=True)
    mended = layout.pairs[2].label.read_bytes()
    layout.pairs[2].label.write_bytes(encode_png(draw(2, 32, 48)[1]))
    assert packed(layout, tmp_path / "out").index.made_with["skipped"] == ["street_2"]
    assert not packed(layout, tmp_path / "out").anew
    layout.pairs[2].label.write_bytes(mended)
    with pytest.raises(UserError, match=r"1 labels changed \(street_2\)"):
        packed(layout, tmp_path / "out")
    assert repacked(layout, tmp_path / "out").index.made_with["skipped"] == []


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("size", [1, 10**6])
def test_a_folder_packed_anew_has_the_bytes_of_a_fresh_one(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, size: int
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(folders.os, "link", no_links)
    packed(layout, tmp_path / "out")
    correct_label(layout)
    found = repacked(layout, tmp_path / "out", size=size)
    assert found.anew
    assert found.index == packed(layout, tmp_path / "fresh", size=size).index
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert not packed(layout, tmp_path / "out", size=size).anew


def test_an_empty_place_is_packed_whether_repack_is_set_or_not(layout: Layout, tmp_path: Path) -> None:
    assert repacked(layout, tmp_path / "a").index == packed(layout, tmp_path / "b").index
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_damaged_shards_are_packed_again_where_it_is_asked_for(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out")
    whole = contents(tmp_path / "out")
    (tmp_path / "out/shard-000001.tar").unlink()
    assert repacked(layout, tmp_path / "out").anew
    assert contents(tmp_path / "out") == whole


def test_an_index_of_an_earlier_version_is_verified_by_names_and_settings(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "out")
    known = open_shards(tmp_path / "out").fingerprint()
    without_sources(tmp_path / "out")
    assert open_shards(tmp_path / "out").fingerprint() == known, "runs know shards by it"
    found = packed(layout, tmp_path / "out")
    assert (found.anew, found.index.sources) == (False, None)
    with pytest.raises(UserError, match=r"settings: 1 samples removed \(street_0\)\. repack"):
        packed(replace(layout, pairs=layout.pairs[1:]), tmp_path / "out")
    assert repacked(layout, tmp_path / "out").anew, "nobody can say that its sources are the same"
    assert open_shards(tmp_path / "out").index.sources.keys() == set(STREETS)


def test_shards_of_another_program_are_never_replaced(layout: Layout, tmp_path: Path) -> None:
    drawn_shards(tmp_path / "out", 3)
    before = contents(tmp_path / "out")
    for action in (packed, repacked):
        with pytest.raises(UserError, match=r"out: holds shards that esl-dist pack did not make"):
            action(layout, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_failure_leaves_the_old_shards_alone(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(layout, tmp_path / "out")
    before = contents(tmp_path / "out")
    layout.pairs[3].label.write_bytes(b"x")
    with pytest.raises(UserError, match=r"labels/street_3\.png: not a picture"):
        repacked(layout, tmp_path / "out")
    correct_label(layout, 3)
    layout.pairs[3].label.write_bytes(encode_png(draw(1, 48, 32)[1]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(packing, "write_index", full)
    with pytest.raises(OSError, match="No space left"):
        repacked(layout, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@contextmanager
def moments_of(folder: Path, copies: Path) -> Iterator[list[Path]]:
    """Copy a folder before everything that changes a name in it: what a kill at that moment would leave."""
    taken: list[Path] = []

    def watch(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            taken.append(copies / f"moment_{len(taken)}")
            shutil.copytree(folder, taken[-1])
            return plain(*arguments, **options)

        patch.setattr(owner, name, watched)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "link"), (Path, "unlink")):
            watch(patch, owner, name)
        yield taken


@pytest.mark.parametrize("size", [10240, 10**6], ids=["more shards than before", "fewer shards than before"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_and_the_next_start_finishes(
    layout: Layout, tmp_path: Path, size: int
) -> None:
    packed(layout, tmp_path / "out")
    old = contents(tmp_path / "out")
    correct_label(layout)
    with moments_of(tmp_path / "out", tmp_path) as moments:
        repacked(layout, tmp_path / "out", size=size)
    new = contents(tmp_path / "out")
    assert len(moments) >= 9
    states = []
    for moment in moments:
        reader = open_shards(moment)
        verify(reader)
        states.append(np.array_equal(decode_label(reader.read(1, "label")), draw(101, 48, 32)[1]))
        again = tmp_path / "again"
        shutil.copytree(moment, again)
        if states[-1]:
            assert not packed(layout, moment, size=size).anew, "it is new, and current"
        else:
            with pytest.raises(UserError, match="1 labels changed"):
                packed(layout, moment, size=size)
            assert old.items() <= contents(moment).items(), "a refusal touches nothing"
        if states[-1]:
            assert contents(moment) == new, "what was half done is finished"
        repacked(layout, again, size=size)
        assert contents(again) == new
        shutil.rmtree(again)
    assert states == sorted(states), "old, then new"
    assert {False, True} == set(states)


def test_what_a_kill_left_of_a_first_packing_is_cleared_away(layout: Layout, tmp_path: Path) -> None:
    packed(layout, tmp_path / "expected")
    out = tmp_path / "out"
    out.mkdir()
    for name in (".lock", "shard-000001.tar.partial", "shard-000077.tar", "repacked-000000.tar", "index.json.partial"):
        (out / name).write_bytes(b"left")
    packed(layout, out)
    assert contents(out) == contents(tmp_path / "expected")


def test_two_packings_into_one_folder_do_not_meet(layout: Layout, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        f"import fcntl; file = open({str(out / '.lock')!r}, 'w'); fcntl.lockf(file, 2); print(flush=True); input()"
    )
    out.mkdir()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="out: another packing is at work in this folder; wait for its end"):
            packed(layout, out)
        other.kill()
    assert packed(layout, out).anew


def test_a_lock_that_its_owner_removed_meanwhile_is_taken_anew(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = folders.fcntl.lockf, []

    def lock(descriptor: int, *arguments: Any) -> None:
        if not calls:
            (tmp_path / "out/.lock").unlink()
        calls.append(descriptor)
        plain(descriptor, *arguments)

    monkeypatch.setattr(folders.fcntl, "lockf", lock)
    packed(layout, tmp_path / "out")
    assert len(calls) == 2


def test_shards_that_may_only_be_read_are_verified(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(layout, tmp_path / "out")

    def read_only(path: Path, *_: object) -> int:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(folders.os, "open", read_only)
    assert not packed(layout, tmp_path / "out").anew


def test_a_file_that_changes_while_it_is_packed_is_named(layout: Layout, tmp_path: Path) -> None:
    def progress(items: Any, total: int, title: str) -> Any:
        for item in items:
            if title == "checking":
                layout.pairs[0].image.write_bytes(encoded(draw(9, 48, 32)[0]))
            yield item

    with pytest.raises(UserError, match=r"images/street_0\.png: changed between its check and its packing"):
        pack(layout, tmp_path / "out", AS_THEY_ARE, 1, progress)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"images/street_0\.png: too little memory for it or its label; take fewer processes"),
        (KeyError("x"), r"images/street_0\.png or .*labels/street_0\.png: cannot be packed \(KeyError: 'x'\)"),
    ],
)
def test_what_goes_wrong_in_a_process_names_the_file(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(packing, "read_picture", fail)
    with pytest.raises(UserError, match=message):
        packed(layout, tmp_path / "out")
