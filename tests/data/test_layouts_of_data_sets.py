"""What the data sets of the field need of a layout: raw ids by name, several extensions, labels in a channel."""

import json
from pathlib import Path
from typing import Any

import pytest

from esl_dist.data.layouts import Layout, read_layout
from esl_dist.errors import UserError
from tests.builders import CLASS_ENTRIES, SPLIT, write_description, write_pictures

ID_NAMES = ["Bird", "Road", "Traffic Sign (Back)", "SKY", "Car Mount"]
NAMED_CLASSES = [
    {"name": "flat", "color": [1, 2, 3], "ids": ["road"]},
    {"name": "rest", "color": [4, 5, 6], "ids": ["sky", "traffic sign (back)"]},
]


def write_names(file: Path, names: list[str] = ID_NAMES) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"version": "1", "labels": [{"readable": name, "evaluate": True} for name in names]}))


def named(folder: Path, **changes: Any) -> Layout:
    """Read a layout whose raw ids are given by name; `changes` are those of the description."""
    write_pictures(folder, ["a"])
    content: dict[str, Any] = {
        "id_names": "config.json",
        "class_sets": {"two": NAMED_CLASSES},
        "ignore_ids": ["bird", "car mount"],
    }
    return read_layout(write_description(folder, **(content | changes)), SPLIT)


def rename(folder: Path, kind: str, old: str, new: str) -> None:
    (folder / SPLIT / kind / old).rename(folder / SPLIT / kind / new)


def files(layout: Layout) -> list[tuple[str, str, str]]:
    return [(pair.name, pair.image.name, pair.label.name) for pair in layout.pairs]


def test_names_stand_for_their_places_in_the_list_of_the_data_set(tmp_path: Path) -> None:
    write_names(tmp_path / "config.json")
    layout = named(tmp_path)
    assert [item.ids for item in layout.class_sets["two"]] == [(1,), (3, 2)]
    assert layout.ignore_ids == {0, 4}
    assert layout.known_ids() == {0, 1, 2, 3, 4}


def test_the_list_of_names_is_that_of_the_root_that_is_given(tmp_path: Path) -> None:
    write_names(tmp_path / "here/config.json")
    write_names(tmp_path / "there/meta/config.json", list(reversed(ID_NAMES)))
    write_names(tmp_path / "here/meta/config.json")
    named(tmp_path / "there", id_names="meta/config.json")
    named(tmp_path / "here", id_names="meta/config.json")
    layout = read_layout(tmp_path / "here/village.yaml", SPLIT, tmp_path / "there")
    assert [item.ids for item in layout.class_sets["two"]] == [(3,), (1, 2)]


@pytest.mark.parametrize("unknown", ["roads", "Road", 1, None])
@pytest.mark.parametrize("key", ["class_sets", "ignore_ids"])
def test_a_name_that_the_data_set_does_not_have_is_reported_with_those_it_has(
    tmp_path: Path, key: str, unknown: object
) -> None:
    write_names(tmp_path / "config.json")
    content: Any = [unknown] if key == "ignore_ids" else {"s": [{**NAMED_CLASSES[0], "ids": ["sky", unknown]}]}
    with pytest.raises(
        UserError,
        match=rf"village\.yaml: .*: the data set has no label {unknown!r}; (near ones are road|it has 5 others)",
    ):
        named(tmp_path, **{key: content})


def test_a_name_that_belongs_to_two_classes_is_refused(tmp_path: Path) -> None:
    write_names(tmp_path / "config.json")
    twice = [NAMED_CLASSES[0], {**NAMED_CLASSES[1], "ids": ["road"]}]
    with pytest.raises(UserError, match=r"class_sets\.s: raw id 1 belongs to class flat and to class rest"):
        named(tmp_path, class_sets={"s": twice})


@pytest.mark.parametrize("entries", [3, ["road"], [{"name": "road", "color": [1, 2, 3]}], []])
def test_a_class_set_that_is_none_is_reported_with_names_too(tmp_path: Path, entries: object) -> None:
    write_names(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"village\.yaml: class_sets\.s.*: "):
        named(tmp_path, class_sets={"s": entries})


def test_a_missing_list_of_names_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/config\.json: no such file"):
        named(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "\xff"])
def test_a_list_of_names_that_is_no_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"/config\.json: cannot be read as JSON"):
        named(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["3", "[]", "{}", '{"labels": 3}', '{"labels": null}', '{"labels": ["road"]}', '{"labels": [{"name": 1}]}'],
)
def test_a_list_of_names_of_another_form_says_what_was_expected(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=r"/config\.json: .*; expected a list `labels` whose entries have a name `readable`"
    ):
        named(tmp_path)


@pytest.mark.parametrize("place", ["../config.json", "meta/../../config.json", "/etc/config.json"])
def test_a_list_of_names_out_of_the_root_is_refused(tmp_path: Path, place: str) -> None:
    write_names(tmp_path / "config.json")
    with pytest.raises(UserError, match=rf"village\.yaml: '{place}' leads out of the data set's folder"):
        named(tmp_path / "root", id_names=place)


def test_names_are_no_raw_ids_where_the_data_set_has_no_list_of_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"village\.yaml: ignore_ids\[0\]: expected a whole number .*, got 'bird'"):
        named(tmp_path, id_names=None, class_sets={"s": CLASS_ENTRIES})
    with pytest.raises(UserError, match=r"village\.yaml: class_sets\.two\[0\]\.ids\[0\]: expected a whole number"):
        named(tmp_path, id_names=None, ignore_ids=[0])


def test_pictures_of_several_extensions_are_found_by_one_pattern(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b", "c"])
    rename(tmp_path, "images", "b.png", "b.jpg")
    rename(tmp_path, "images", "c.png", "c.jpeg")
    (tmp_path / SPLIT / "images/notes.txt").touch()
    layout = read_layout(write_description(tmp_path, image="{split}/images/{name}.*"), SPLIT)
    assert files(layout) == [("a", "a.png", "a.png"), ("b", "b.jpg", "b.png"), ("c", "c.jpeg", "c.png")]


def test_names_with_dots_and_folders_are_found_with_every_extension(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["x/a.b", "x/c.png.d"])
    rename(tmp_path, "images", "x/a.b.png", "x/a.b.jpg")
    splits = {SPLIT: {"names": ["x/*"]}}
    patterns = {"image": "{split}/images/{name}.*", "label": "{split}/labels/{name}.*"}
    layout = read_layout(write_description(tmp_path, **patterns, splits=splits), SPLIT)
    assert files(layout) == [("x/a.b", "a.b.jpg", "a.b.png"), ("x/c.png.d", "c.png.d.png", "c.png.d.png")]


def test_a_list_of_samples_finds_their_extensions(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b"])
    rename(tmp_path, "images", "b.png", "b.jpg")
    (tmp_path / "some.txt").write_text("b\na\n")
    splits = {SPLIT: {"list": "some.txt"}}
    layout = read_layout(write_description(tmp_path, image="{split}/images/{name}.*", splits=splits), SPLIT)
    assert files(layout) == [("a", "a.png", "a.png"), ("b", "b.jpg", "b.png")]


def test_two_files_of_one_sample_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b"])
    (tmp_path / SPLIT / "images/b.jpg").touch()
    file = write_description(tmp_path, image="{split}/images/{name}.*")
    with pytest.raises(UserError, match=r"^two files of one sample: .*images/b\.jpg, .*images/b\.png; remove one$"):
        read_layout(file, SPLIT)
    assert len(read_layout(write_description(tmp_path), SPLIT).pairs) == 2, "a pattern with an extension sees no other"


@pytest.mark.parametrize("image", ["{split}/images/{name}.png", "{split}/images/{name}.*"])
def test_labels_without_pictures_are_reported_by_name(tmp_path: Path, image: str) -> None:
    write_pictures(tmp_path, [f"s{number}" for number in range(4)])
    for number in (1, 3):
        (tmp_path / SPLIT / f"images/s{number}.png").unlink()
    first, second = (rf"{SPLIT}/images/{name}\.png" for name in ("s1", "s3"))
    with pytest.raises(UserError, match=rf"^2 files of the split do not exist: \S*/{first}, \S*/{second}; a sample is"):
        read_layout(write_description(tmp_path, image=image), SPLIT)


def test_pictures_without_labels_are_reported_by_name(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b"])
    (tmp_path / SPLIT / "labels/b.png").unlink()
    with pytest.raises(UserError, match=r"^1 files of the split do not exist: \S*/labels/b\.png; a sample is"):
        read_layout(write_description(tmp_path, label="{split}/labels/{name}.*"), SPLIT)


def test_a_missing_file_that_is_picture_and_label_is_counted_once(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"])
    (tmp_path / "some.txt").write_text("a\nb\nc\n")
    both = dict.fromkeys(("image", "label"), "{split}/images/{name}.png")
    with pytest.raises(UserError, match=r"^2 files of the split do not exist: \S*/b\.png, \S*/c\.png; a sample is"):
        read_layout(write_description(tmp_path, **both, splits={SPLIT: {"list": "some.txt"}}), SPLIT)


def test_labels_of_other_splits_and_names_are_not_missed(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a1", "b1"])
    (tmp_path / SPLIT / "images/b1.png").unlink()
    (tmp_path / "val/labels").mkdir(parents=True)
    (tmp_path / "val/labels/a2.png").touch()
    assert files(read_layout(write_description(tmp_path, splits={SPLIT: {"names": ["a*"]}}), SPLIT))[0][0] == "a1"


def test_what_a_description_says_of_its_labels_is_in_the_layout(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"])
    plain = read_layout(write_description(tmp_path), SPLIT)
    assert (plain.reading.label_channel, plain.keep_aspect_ratio, plain.skip_other_sizes) == (None, False, False)
    for channel in ("red", "green", "blue"):
        file = write_description(tmp_path, label_channel=channel, keep_aspect_ratio=True, skip_other_sizes=True)
        layout = read_layout(file, SPLIT)
        assert layout.reading.label_channel == channel
        assert (layout.keep_aspect_ratio, layout.skip_other_sizes) == (True, True)
    for channel in ("alpha", "Red", "0"):
        with pytest.raises(UserError, match=rf"village\.yaml: label_channel={channel} is impossible: expected one of"):
            read_layout(write_description(tmp_path, label_channel=channel), SPLIT)
