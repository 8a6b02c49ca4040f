"""What a split's labels are: none, others than the description's, painted; and how pictures are turned."""

from pathlib import Path

import pytest

from esl_dist.data.layouts import Layout, read_layout
from esl_dist.errors import UserError
from tests.builders import CLASS_ENTRIES, SPLIT, class_set, write_description, write_pictures

COLORS = {(128, 64, 128): 7, (70, 70, 70): 11, (70, 130, 180): 23}


def layout(folder: Path, **changes: object) -> Layout:
    write_pictures(folder, ["a", "b"])
    return read_layout(write_description(folder, **changes), SPLIT)


def entry(name: str, color: list[int], *ids: int) -> dict[str, object]:
    return {"name": name, "color": color, "ids": list(ids)}


def test_a_split_without_labels_stands_beside_one_with_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a", "b"])
    (tmp_path / SPLIT / "labels/b.png").unlink()
    splits = {SPLIT: {"names": ["*"], "label": None}, "val": {"names": ["a"]}}
    file = write_description(
        tmp_path, splits=splits, image=f"{SPLIT}/images/{{name}}.png", label="train/labels/{name}.png"
    )
    unlabelled, labelled = (read_layout(file, split) for split in (SPLIT, "val"))
    assert [(pair.name, pair.label) for pair in unlabelled.pairs] == [("a", None), ("b", None)]
    assert (unlabelled.class_sets, unlabelled.known_ids()) == ({}, set())
    assert labelled.pairs[0].label == tmp_path / SPLIT / "labels/a.png"
    assert labelled.class_sets == {"village3": class_set()}


def test_a_split_without_labels_needs_no_names_of_ids(tmp_path: Path) -> None:
    splits = {SPLIT: {"names": ["*"], "label": None}}
    assert len(layout(tmp_path, splits=splits, id_names="absent.json").pairs) == 2


def test_a_split_may_have_labels_of_its_own(tmp_path: Path) -> None:
    splits = {SPLIT: {"names": ["*"], "label": "{split}/labels/{name}.*"}}
    for label in ("elsewhere/{name}.png", None):
        found = layout(tmp_path, splits=splits, label=label)
        assert found.pairs[1].label == tmp_path / SPLIT / "labels/b.png"
        assert found.class_sets == {"village3": class_set()}


def test_classes_of_no_label_and_labels_of_no_class_are_refused_whatever_the_split(tmp_path: Path) -> None:
    unlabelled = {SPLIT: {"names": ["*"], "label": None}}
    for changes in ({"label": None}, {"label": None, "splits": unlabelled}, {"class_sets": {}, "splits": unlabelled}):
        with pytest.raises(UserError, match="expected label and class_sets, or neither"):
            layout(tmp_path, **changes)


def test_colors_of_painted_labels_stand_for_the_first_id_of_their_class(tmp_path: Path) -> None:
    found = layout(tmp_path, label_colors=True)
    assert found.reading.colors == COLORS
    plain = layout(tmp_path)
    assert plain.reading.colors is None


@pytest.mark.parametrize(("ignore_ids", "raw_id"), [([9, 3], 3), ([], 255)])
def test_ignored_colors_stand_for_an_ignored_id(tmp_path: Path, ignore_ids: list[int], raw_id: int) -> None:
    colors = [[0, 0, 0], [255, 255, 255], [0, 0, 0]]
    found = layout(tmp_path, label_colors=True, ignore_colors=colors, ignore_ids=ignore_ids)
    assert found.reading.colors == COLORS | {(0, 0, 0): raw_id, (255, 255, 255): raw_id}
    assert raw_id in found.known_ids()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_channel": "red"}, "label_colors and label_channel contradict each other"),
        ({"class_sets": {"s": [entry("x", [1, 2, 3])]}}, "class x of s has no ids"),
        (
            {"class_sets": {"s": [*CLASS_ENTRIES, entry("x", [70, 70, 70], 5)]}},
            r"color \[70, 70, 70\] stands for raw id 11 \(class house of s\) and for 5 \(class x of s\)",
        ),
        (
            {"class_sets": {"s": CLASS_ENTRIES, "t": [entry("x", [70, 70, 70], 12, 11)]}},
            r"color \[70, 70, 70\] stands for raw id 11 \(class house of s\) and for 12 \(class x of t\)",
        ),
        ({"ignore_colors": [[70, 70, 70]]}, r"ignore_colors: \[70, 70, 70\] is the color of a class"),
        ({"ignore_colors": [[0, 0]]}, r"ignore_colors\[0\]: expected a list of 3 whole numbers, got \[0, 0\]"),
        ({"ignore_colors": [0, 0, 0]}, r"ignore_colors\[0\]: expected a list of 3 whole numbers, got 0"),
        ({"ignore_colors": [[0, 0, 256]]}, r"ignore_colors\[0\]\[2\]: expected a whole number from 0 to 255, got 256"),
        ({"ignore_colors": [[0, 0, 0]], "ignore_ids": [7]}, "ignore_colors: raw id 7, .* is a class's; list another"),
        (
            {"ignore_colors": [[0, 0, 0]], "ignore_ids": [], "class_sets": {"s": [entry("x", [1, 2, 3], 255)]}},
            "ignore_colors: raw id 255, .* is a class's; list another",
        ),
        ({"label_colors": False, "ignore_colors": [[0, 0, 0]]}, "ignore_colors: expected with label_colors: true only"),
        ({"label_colors": "perhaps"}, "label_colors: expected bool"),
    ],
)
def test_colors_that_cannot_be_meant_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"village\.yaml: {message}"):
        layout(tmp_path, **({"label_colors": True} | changes))


def test_a_number_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    found = layout(tmp_path, class_sets={"s": [entry(1, [1, 2, 3], 7)]})
    assert [item.name for item in found.class_sets["s"]] == ["1"]


def test_class_sets_may_share_colors_that_agree(tmp_path: Path) -> None:
    coarse = [entry("ground", [128, 64, 128], 7, 23), entry("built", [1, 2, 3], 11, 12)]
    found = layout(tmp_path, label_colors=True, class_sets={"fine": CLASS_ENTRIES, "coarse": coarse})
    assert found.reading.colors == COLORS | {(1, 2, 3): 11}


@pytest.mark.parametrize("value", [None, "apply", "ignore"])
def test_what_is_done_with_turned_pictures_is_in_the_layout(tmp_path: Path, value: str | None) -> None:
    assert layout(tmp_path, exif_orientation=value).reading.exif_orientation == value


@pytest.mark.parametrize("value", [True, "turn", 3])
def test_another_treatment_of_turned_pictures_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"exif_orientation=.* is impossible: expected one of"):
        layout(tmp_path, exif_orientation=value)
