"""A data set's description finds its pairs; every mistake in it is named with the file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from esl_dist.config import DOMAINS
from esl_dist.data import toytown
from esl_dist.data.labels import class_names
from esl_dist.data.layouts import Layout, read_layout
from esl_dist.errors import UserError
from tests.builders import CLASS_ENTRIES, SPLIT, class_set, write_description, write_pictures

PROJECT = Path(__file__).resolve().parents[2]
DATASETS = PROJECT / "configs" / "datasets"
CAMVID = Path(os.environ.get("ESL_CAMVID_DIR", PROJECT.parent / "shared/data/camvid"))


def names(layout: Layout) -> list[str]:
    return [pair.name for pair in layout.pairs]


def with_names(folder: Path, **split: object) -> Layout:
    return read_layout(write_description(folder, splits={SPLIT: split}), SPLIT)


def cities(folder: Path, *pictures: str) -> Path:
    """Empty files in the layout of Cityscapes; a layout looks at names alone."""
    for name in pictures:
        for kind, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = folder / kind / SPLIT / f"{name}_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return write_description(
        folder,
        image="leftImg8bit/{split}/{name}_leftImg8bit.png",
        label="gtFine/{split}/{name}_gtFine_labelIds.png",
        splits={SPLIT: {"names": ["*/*"]}, "aachen": {"names": ["aachen/*"]}},
    )


def test_pairs_are_sorted_by_name_with_both_files(tmp_path: Path) -> None:
    layout = read_layout(write_pictures(tmp_path, ["b", "a10", "a2"]), SPLIT)
    assert names(layout) == ["a10", "a2", "b"]
    assert layout.pairs[0].image == tmp_path / SPLIT / "images/a10.png"
    assert layout.pairs[0].label == tmp_path / SPLIT / "labels/a10.png"
    assert (layout.dataset, layout.split) == ("village", SPLIT)
    assert layout.class_sets == {"village3": class_set()}
    assert layout.known_ids() == {0, 7, 11, 12, 23}


def test_names_with_folders_are_found_through_two_patterns(tmp_path: Path) -> None:
    file = cities(tmp_path, "ulm/ulm_1", "aachen/aachen_0", "aachen/aachen_2")
    layout = read_layout(file, SPLIT)
    assert names(layout) == ["aachen/aachen_0", "aachen/aachen_2", "ulm/ulm_1"]
    assert layout.pairs[2].image == tmp_path / "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png"
    assert layout.pairs[2].label == tmp_path / "gtFine/train/ulm/ulm_1_gtFine_labelIds.png"


def test_another_root_takes_the_place_of_the_one_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "there", ["a"])
    file = write_description(tmp_path / "here")
    assert names(read_layout(file, SPLIT, tmp_path / "there")) == ["a"]


def test_names_match_as_in_a_shell_and_several_patterns_name_a_sample_once(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a1", "a2", "b1", "ü.1", "[x]"])
    assert names(with_names(tmp_path, names=["a*", "?1", "a1"])) == ["a1", "a2", "b1"]
    assert names(with_names(tmp_path, names=["[ab]1"])) == ["a1", "b1"]
    assert names(with_names(tmp_path, names=["*"])) == ["[x]", "a1", "a2", "b1", "ü.1"]


def test_signs_of_a_shell_in_folder_names_mean_themselves(tmp_path: Path) -> None:
    write_pictures(tmp_path / "[root]*", ["a"])
    assert names(read_layout(tmp_path / "[root]*/village.yaml", SPLIT)) == ["a"]
    (tmp_path / "[root]*" / SPLIT).rename(tmp_path / "[root]*/[x]")
    file = write_description(tmp_path / "[root]*", image="[x]/images/{name}.png", label="[x]/labels/{name}.png")
    assert names(read_layout(file, SPLIT)) == ["a"]


def test_a_list_names_samples_relative_to_the_description(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b", "inner/c"])
    (tmp_path / "some.txt").write_text("b\n\n  inner//c \r\n")
    assert names(with_names(tmp_path, list="some.txt")) == ["b", "inner/c"]


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "inner/../../../x"])
def test_a_list_or_pattern_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path, ["a"])
    (tmp_path / "some.txt").write_text(f"a\n{name}\n")
    with pytest.raises(UserError, match=rf"some\.txt: line 2: '{name}' leads out of the data set's folder"):
        with_names(tmp_path, list="some.txt")
    with pytest.raises(
        UserError, match=rf"village\.yaml: splits\.train\.names: '{name}' leads out of the data set's folder"
    ):
        with_names(tmp_path, names=["a", name])


@pytest.mark.parametrize("again", ["a", "./a", "a/", "x//a\nx/a"])
def test_a_list_that_names_a_sample_twice_is_refused(tmp_path: Path, again: str) -> None:
    write_pictures(tmp_path, ["a", "x/a"])
    (tmp_path / "some.txt").write_text(f"a\n{again}\n")
    with pytest.raises(UserError, match=r"some\.txt: names a sample twice"):
        with_names(tmp_path, list="some.txt")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    write_pictures(tmp_path, ["a"])
    if content is not None:
        (tmp_path / "some.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"village\.yaml: .*some\.txt cannot be read"):
        with_names(tmp_path, list="some.txt")


def test_missing_files_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"s{number}" for number in range(9)])
    for number in range(7):
        (tmp_path / SPLIT / "labels" / f"s{number}.png").unlink()
    with pytest.raises(
        UserError,
        match=r"^7 files of the split do not exist: .*labels/s0\.png, .*s4\.png, …; a sample is .*$",
    ):
        read_layout(tmp_path / "village.yaml", SPLIT)


def test_a_list_may_not_name_what_does_not_exist(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"])
    (tmp_path / "some.txt").write_text("a\nghost\n")
    with pytest.raises(UserError, match=r"2 files .*images/ghost\.png, .*labels/ghost\.png"):
        with_names(tmp_path, list="some.txt")


def test_names_that_match_nothing_are_reported_with_folder_and_pattern(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"])
    with pytest.raises(UserError, match=r"split train of village has no pictures \(train/images/\{name\}\.png\)"):
        with_names(tmp_path, names=["z*"])


def test_an_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"village\.yaml: no split 'val'; it names train, aachen"):
        read_layout(cities(tmp_path, "aachen/a"), "val")


def test_a_missing_root_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no such folder \(the data set village\); .* root=…"):
        read_layout(write_description(tmp_path), SPLIT, tmp_path / "absent")


def test_a_missing_root_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^data/x: .*looked for {tmp_path}/data/x, for root is relative to the work"):
        read_layout(write_description(tmp_path), SPLIT, Path("data/x"))


@pytest.mark.parametrize("pattern", ["../{name}.png", "/abs/{name}.png", "{split}/x.png", "{name}/{name}.png"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_pattern_out_of_the_root_or_without_one_name_is_refused(tmp_path: Path, key: str, pattern: str) -> None:
    write_pictures(tmp_path, ["a"])
    file = write_description(tmp_path, **{key: pattern})
    with pytest.raises(UserError, match=r"village\.yaml: pattern .*expected a path below the root"):
        read_layout(file, SPLIT)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("images/*/{name}.png", r"\* has no meaning here"),
        ("images/?/{name}.png", r"\? has no meaning here"),
        ("{name}.*.png", r"\* has no meaning here"),
        ("{city}/{name}.png", r"{city} has no meaning here"),
        ("images/{}/{name}.png", r"{} has no meaning here"),
    ],
)
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_pattern_of_unknown_signs_is_refused(tmp_path: Path, key: str, pattern: str, message: str) -> None:
    write_pictures(tmp_path, ["a"])
    with pytest.raises(UserError, match=rf"village\.yaml: pattern .* of {key}.*{message}"):
        read_layout(write_description(tmp_path, **{key: pattern}), SPLIT)


MISTAKES = [
    ({"image": "images/\x01/{name}.png"}, "image=.*control characters"),
    ({"label": ""}, "label= is impossible: an empty text"),
    ({"imgae": "x"}, "unknown setting 'imgae'; the nearest known one is 'image'"),
    ({"class_sets": None}, "expected label and class_sets, or neither"),
    ({"class_sets": {}}, "expected label and class_sets, or neither"),
    ({"class_sets": 3}, "class_sets: expected"),
    ({"class_sets": {"s": []}}, "class_sets.s: expected 1 to 255 classes"),
    ({"class_sets": {"s": ["road"]}}, r"class_sets\.s\[0\]: expected a mapping"),
    ({"class_sets": {"s": [CLASS_ENTRIES[0], {**CLASS_ENTRIES[1], "ids": [7]}]}}, "class_sets.s: raw id 7 belongs"),
    ({"ignore_ids": [-1]}, r"ignore_ids\[0\]: expected a whole number from 0 to 65535, got -1"),
    ({"ignore_ids": [65536]}, r"ignore_ids\[0\]: expected a whole number from 0 to 65535, got 65536"),
    ({"splits": {SPLIT: {"nmaes": ["*"]}}}, r"unknown setting 'splits\.train\.nmaes'.*'splits\.train\.names'"),
    ({"splits": {SPLIT: None}}, r"splits\.train"),
    ({"splits": {SPLIT: 3}}, r"splits\.train"),
    ({"splits": {SPLIT: ["*"]}}, ""),
    ({"splits": {SPLIT: {"names": "*"}}}, r"splits\.train\.names"),
    ({"splits": {SPLIT: {"names": [["*"]]}}}, r"splits\.train\.names\[0\]: expected str"),
    ({"splits": {SPLIT: {"names": ["a", ""]}}}, r"splits\.train\.names: an empty pattern"),
    ({"splits": {SPLIT: {"names": ["./"]}}}, r"splits\.train\.names: an empty pattern"),
    ({"splits": {SPLIT: {"names": ["*"], "label": 3}}}, "pattern '3' of label"),
    ({"splits": {SPLIT: {}}}, "a split needs either names or list"),
    ({"splits": {SPLIT: {"names": ["*"], "list": "some.txt"}}}, "a split needs either names or list"),
    ({"splits": {1: {"names": ["*"]}}}, r"no split .train.; it names 1"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_in_the_description_names_file_and_key(tmp_path: Path, changes: dict, message: str) -> None:
    write_pictures(tmp_path, ["a"])
    with pytest.raises(UserError, match=rf"village\.yaml: {message}"):
        read_layout(write_description(tmp_path, **changes), SPLIT)


def test_the_description_of_toytown_agrees_with_what_is_drawn(tmp_path: Path) -> None:
    toytown.write_toytown(tmp_path, seed=0, counts={"source_train": 2, "target_val": 1}, width=64, height=32)
    layout = read_layout(DATASETS / "toytown.yaml", "source_train", tmp_path)
    classes = layout.class_sets["toytown9"]
    assert class_names(classes) == list(toytown.CLASSES)
    assert [item.ids for item in classes] == [(value,) for value in range(len(toytown.CLASSES))]
    assert layout.ignore_ids == {255}
    assert len(layout.pairs) == 2
    splits = yaml.safe_load((DATASETS / "toytown.yaml").read_text())["splits"]
    assert set(splits) == {f"{domain}_{split}" for domain in DOMAINS for split in toytown.SPLITS}


def test_camvid_lists_do_not_overlap_and_name_the_dusk_sequence_alone() -> None:
    train, val = (set((DATASETS / f"camvid_dusk_{part}.txt").read_text().split()) for part in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (62, 62, 0)
    assert {name[:6] for name in train | val} == {"0001TP"}


@pytest.mark.camvid
@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no CamVid pictures in {CAMVID}; set ESL_CAMVID_DIR")
def test_camvid_has_its_pairs() -> None:
    splits = {
        split: read_layout(DATASETS / "camvid.yaml", split, CAMVID) for split in ("day", "dusk_train", "dusk_val")
    }
    assert [len(layout.pairs) for layout in splits.values()] == [577, 62, 62]
    found = [set(names(layout)) for layout in splits.values()]
    assert len(set.union(*found)) == 577 + 62 + 62


def test_an_import_of_layouts_needs_no_network_library() -> None:
    """Packing workers import this in every process; torch would cost them seconds and memory."""
    program = "import sys, esl_dist.data.layouts, esl_dist.data.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
