"""Checkpoints: whole or absent, found newest first, refused when damaged, pruned."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esl_dist import config as settings
from esl_dist.data.labels import SemanticClass
from esl_dist.errors import UserError
from esl_dist.files import PARTIAL_SUFFIX
from esl_dist.runs import checkpoints
from esl_dist.runs.checkpoints import (
    Checkpoint,
    build_network,
    checkpoint_folder,
    checkpoint_folders,
    find_checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    set_aside_after,
)
from esl_dist.runs.fitting import BrokenCheckpointError
from tests.training import small_runs
from tests.training.small_runs import after_a_step, configuration, newest_whole, reseal, rewrite_as_version

CLASSES = (SemanticClass("road", (1, 2, 3), (7, 8)), SemanticClass("sky", (4, 5, 6), (23,)))
KEEP_ALL = settings.Checkpoints(keep_newest=100)


CONFIG = configuration(network={"architecture": "tiny", "batch_norm": "per_domain"})


def checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    return small_runs.checkpoint(step, build_network(CONFIG.network, CLASSES).state_dict(), CONFIG, CLASSES)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = replace(after_a_step(CONFIG, CLASSES), step=4)
    turned = saved.segmentation["conv1.weight"].to(memory_format=torch.channels_last)
    saved.segmentation["conv1.weight"] = turned
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, KEEP_ALL))
    assert (loaded.step, loaded.config, loaded.classes, loaded.shards) == (4, saved.config, CLASSES, saved.shards)
    assert all(torch.equal(loaded.segmentation[name], tensor) for name, tensor in saved.segmentation.items())
    name = "main.0.weight"
    assert torch.equal(loaded.networks["discriminators"][name], saved.networks["discriminators"][name])
    assert str(loaded.training) == str(saved.training)


@pytest.mark.parametrize("name", ["segmentation.safetensors", "discriminators.safetensors", "training.pt"])
@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing"])
def test_a_damaged_file_is_refused_and_the_one_before_is_the_newest(tmp_path: Path, name: str, damage: str) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    broken = save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    content = bytearray((broken / name).read_bytes())
    if damage == "missing":
        (broken / name).unlink()
    elif damage == "truncated":
        (broken / name).write_bytes(content[:-1])
    else:
        content[-1] ^= 1
        (broken / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: missing or not the bytes that were saved"):
        load_checkpoint(broken)
    assert newest_whole(tmp_path) == before


def test_a_save_that_was_interrupted_is_no_checkpoint_and_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(UserError, match=r"step-00000002: cannot be written .*No space left .*make room"):
            save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    assert newest_whole(tmp_path) == before
    assert newest_whole(tmp_path) != save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    assert find_checkpoint(tmp_path)[1].step == 2


def test_the_newest_and_every_so_many_steps_stay(tmp_path: Path) -> None:
    for step in range(1, 11):
        save_checkpoint(tmp_path, checkpoint(step), settings.Checkpoints(keep_newest=2, keep_every=4))
    assert [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(tmp_path)] == [4, 8, 9, 10]


def test_the_best_step_stays_until_another_is_the_best(tmp_path: Path) -> None:
    best_and_kept = [(None, [1]), (2, [2]), (2, [2, 3]), (2, [2, 4]), (5, [5]), (5, [5, 6]), (5, [5, 7])]
    for step, (best, kept) in enumerate(best_and_kept, start=1):
        save_checkpoint(tmp_path, checkpoint(step), settings.Checkpoints(keep_newest=1), best)
        assert [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(tmp_path)] == kept


@pytest.mark.parametrize("step", ["9" * 30, str(10**12 + 1), "0", "00000000", "\N{ARABIC-INDIC DIGIT TWO}", "-1"])
def test_a_folder_whose_name_is_no_step_is_no_checkpoint(tmp_path: Path, step: str) -> None:
    saved = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    shutil.copytree(saved, saved.with_name(f"step-{step}"))
    assert checkpoint_folders(tmp_path) == [saved]


def test_a_later_checkpoint_does_not_cost_the_one_just_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(4), KEEP_ALL)
    later = save_checkpoint(tmp_path, checkpoint(6), KEEP_ALL)
    saved = save_checkpoint(tmp_path, checkpoint(5), settings.Checkpoints(keep_newest=1))
    assert checkpoint_folders(tmp_path) == [saved, later]


def test_only_checkpoints_after_the_step_that_a_run_goes_on_from_are_set_aside(tmp_path: Path) -> None:
    stay = [save_checkpoint(tmp_path, checkpoint(step), KEEP_ALL) for step in (1, 2)]
    for step in (3, 4):
        save_checkpoint(tmp_path, checkpoint(step), KEEP_ALL)
    set_aside_after(tmp_path, 2)
    assert checkpoint_folders(tmp_path) == stay


def test_a_checkpoint_that_breaks_once_more_takes_the_place_of_the_broken_one(tmp_path: Path) -> None:
    for damage in ("first", "second"):
        (save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL) / "training.pt").write_text(damage)
        set_aside_after(tmp_path, 1)
        [aside] = (tmp_path / "checkpoints").iterdir()
        assert (aside / "training.pt").read_text() == damage


def test_what_killed_saves_left_is_gone_after_the_next(tmp_path: Path) -> None:
    for step in (1, 3):
        left = checkpoint_folder(tmp_path, step).with_suffix(PARTIAL_SUFFIX)
        left.mkdir(parents=True)
        (left / "left").touch()
    saved = save_checkpoint(tmp_path, checkpoint(3), KEEP_ALL)
    assert list(saved.parent.iterdir()) == [saved]
    assert len(list(saved.iterdir())) == 4


def test_a_checkpoint_of_the_same_step_gives_way_to_the_one_just_saved(tmp_path: Path) -> None:
    """Somebody may have put one back meanwhile."""
    (save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL) / "training.pt").unlink()
    load_checkpoint(save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL))


def test_a_linked_checkpoint_is_pruned_as_any_other_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    linked = save_checkpoint(tmp_path / "run", checkpoint(1), KEEP_ALL)
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    assert newest_whole(tmp_path / "run") == linked
    saved = save_checkpoint(tmp_path / "run", checkpoint(2), settings.Checkpoints(keep_newest=1))
    assert list(saved.parent.iterdir()) == [saved]
    assert load_checkpoint(tmp_path / "elsewhere").step == 1


def test_every_byte_and_name_is_on_disk_before_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut would show cannot be tried; the order of the calls can."""
    synced: set[int] = set()
    before_final_name: set[int] = set()
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        if new.name.startswith("step-"):
            before_final_name.update(synced)
            synced.clear()
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    folder = save_checkpoint(tmp_path / "new" / "run", checkpoint(1), KEEP_ALL)
    names_above = [tmp_path, *(path for path in folder.parents if tmp_path in path.parents)]
    must_be = {path.name: path.stat().st_ino for path in [*folder.iterdir(), folder, *names_above]}
    assert len(must_be) == 4 + 1 + 4
    assert [name for name, inode in must_be.items() if inode not in before_final_name] == []
    assert folder.parent.stat().st_ino in synced, "the final name, too, before the save returns"


@pytest.mark.parametrize("read", [load_checkpoint, lambda folder: load_newest(folder.parent.parent)])
def test_a_checkpoint_of_another_format_version_is_refused_and_not_passed_over(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    folder = save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL)
    rewrite_as_version(folder, 99)
    told = (
        r"step-00000002/manifest\.json: format version 99, this program reads 2 and 3; use the version of the program "
        r"that wrote it, or begin anew: train under another name"
    )
    with pytest.raises(UserError, match=told):
        read(folder)


@pytest.mark.parametrize("header", [{"format": "another"}, {"format_version": "3"}])
def test_a_checkpoint_of_no_format_is_passed_over_and_nobody_is_told_to_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: dict[str, str]
) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    reseal(save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL), lambda manifest: {**manifest, **header})
    assert newest_whole(tmp_path) == before
    told = capsys.readouterr().err
    assert told.count("passing over a broken checkpoint") == 1
    assert told.endswith("; choose another checkpoint\n")


def test_a_checkpoint_of_version_2_is_read_which_had_an_empty_file_where_there_were_no_discriminators(
    tmp_path: Path,
) -> None:
    config = configuration(method={"name": "source_only"})
    state = build_network(config.network, CLASSES).state_dict()
    folder = save_checkpoint(tmp_path, small_runs.checkpoint(1, state, config, CLASSES), KEEP_ALL)
    save_file({}, folder / "discriminators.safetensors")
    reseal(folder)
    with pytest.raises(UserError, match=r"files: expected the files segmentation\.safetensors, training\.pt, got"):
        load_checkpoint(folder)
    reseal(folder, lambda manifest: {**manifest, "format_version": 2})
    assert load_checkpoint(folder).networks.keys() == {"segmentation"}


def test_damage_that_looks_like_another_format_version_is_passed_over(tmp_path: Path) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    manifest = save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 3', '"format_version": 4'))
    assert newest_whole(tmp_path) == before


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path: Path) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    folder = save_checkpoint(tmp_path, checkpoint(3), KEEP_ALL)
    folder.rename(folder.with_name("step-00000009"))
    assert newest_whole(tmp_path) == before


@pytest.mark.parametrize(("older", "newer"), [(3, 12), (99_999_999, 100_000_000)])
@pytest.mark.parametrize("padded", [True, False])
def test_the_newest_checkpoint_is_that_of_the_highest_step_however_its_name_is_written(
    tmp_path: Path, older: int, newer: int, padded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = (save_checkpoint(tmp_path, checkpoint(step), KEEP_ALL) for step in (older, newer))
    if not padded:
        before = before.rename(before.with_name(f"step-{older}"))
    assert checkpoint_folders(tmp_path) == [before, after]
    assert find_checkpoint(tmp_path)[0] == after
    set_aside_after(tmp_path, newer)
    assert checkpoint_folders(tmp_path) == [before, after]
    (after / "training.pt").unlink()
    folder, found = find_checkpoint(tmp_path)
    assert (folder, found.step) == (before, older)
    assert "passing over" in capsys.readouterr().err


def test_every_file_of_a_checkpoint_may_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        ("discriminators.safetensors", "manifest.json", "segmentation.safetensors", "training.pt"), "0o640"
    )


def test_a_link_that_leads_nowhere_is_a_checkpoint_that_cannot_be_used(tmp_path: Path) -> None:
    linked = save_checkpoint(tmp_path / "run", checkpoint(1), KEEP_ALL)
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "not_there")
    with pytest.raises(UserError, match="none of its checkpoints can be used"):
        newest_whole(tmp_path / "run")
    set_aside_after(tmp_path / "run", 0)
    assert (tmp_path / "run/checkpoints/step-00000001.broken").is_symlink()


@pytest.mark.parametrize("name", ["manifest.json", "segmentation.safetensors", "training.pt"])
def test_a_file_that_cannot_be_read_is_passed_over_as_a_damaged_one(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = save_checkpoint(tmp_path, checkpoint(1), KEEP_ALL)
    unreadable = save_checkpoint(tmp_path, checkpoint(2), KEEP_ALL) / name
    unreadable.unlink()
    # Its first bytes belong to no memory: reading them is an I/O error.
    unreadable.symlink_to("/proc/self/mem")
    assert newest_whole(tmp_path) == before
    warning = capsys.readouterr().err
    assert f"passing over a broken checkpoint: {unreadable}: cannot be read" in warning
    assert "Input/output error" in warning


@pytest.mark.parametrize("read", [load_newest, find_checkpoint])
def test_checkpoints_that_are_all_broken_are_not_the_same_as_none(
    tmp_path: Path, read: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        (save_checkpoint(tmp_path, checkpoint(step), KEEP_ALL) / "training.pt").unlink()
    with pytest.raises(UserError, match=r"none of its checkpoints can be used .*step-00000002/training.pt: missing"):
        read(tmp_path)
    warnings = capsys.readouterr().err.splitlines()
    assert ["step-00000002" in warnings[0], "step-00000001" in warnings[1]] == [True, True]


@pytest.mark.parametrize(
    ("read", "place"),
    [
        (load_newest, ""),
        (lambda path: find_checkpoint(path)[1], ""),
        (lambda path: find_checkpoint(path)[1], "checkpoints/step-00000002"),
    ],
)
def test_the_newest_is_loaded_and_each_of_its_files_read_once_for_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Checkpoint], place: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step), KEEP_ALL)
    hashed: list[str] = []
    plain = checkpoints.sha256_of_file
    monkeypatch.setattr(checkpoints, "sha256_of_file", lambda path: (hashed.append(path.name), plain(path))[1])
    assert read(tmp_path / place).step == 2
    assert sorted(hashed) == ["discriminators.safetensors", "segmentation.safetensors", "training.pt"]


def test_a_checkpoint_is_found_in_its_run_and_by_its_own_folder(tmp_path: Path) -> None:
    folders = [save_checkpoint(tmp_path, checkpoint(step), KEEP_ALL) for step in (1, 2)]
    assert find_checkpoint(tmp_path)[0] == folders[1]
    assert find_checkpoint(folders[0])[0] == folders[0]


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return shutil.rmtree, (str(tmp_path),)

    saved = checkpoint(1)
    saved.training["trap"] = Trap()
    folder = save_checkpoint(tmp_path, saved, KEEP_ALL)
    with pytest.raises(BrokenCheckpointError, match=r"training\.pt: refused: it is damaged or holds more than tensors"):
        load_checkpoint(folder)
    assert folder.exists()


def test_a_folder_without_checkpoints_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint; expected a run folder"):
        find_checkpoint(tmp_path)
    assert newest_whole(tmp_path) is None
