"""Class sets come from a folder of shards or from a description, whether its data set is at hand or not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esl_dist.data.class_sets import read_class_sets, same_classes
from esl_dist.data.labels import class_names
from esl_dist.data.shards import open_shards
from esl_dist.errors import UserError
from tests.builders import CLASS_ENTRIES, class_set, drawn_shards, write_description, write_shards
from tests.programs import PROJECT


def test_a_folder_of_shards_and_its_description_name_the_same_class_sets(tmp_path: Path) -> None:
    shards = drawn_shards(tmp_path / "shards", 1)
    file = write_description(tmp_path / "village")
    assert read_class_sets(file) == read_class_sets(shards.folder) == {"village3": class_set()}


@pytest.mark.parametrize("file", sorted((PROJECT / "configs/datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_description_of_the_project_names_its_class_sets_without_its_data(file: Path) -> None:
    class_sets = read_class_sets(file)
    assert all(len(classes) == int(name.lstrip("abcdefghijklmnopqrstuvwxyz")) for name, classes in class_sets.items())


@pytest.mark.parametrize("given", ["cityscapes", "configs/datasets/cityscapes.yaml"])
def test_a_description_that_the_package_brings_is_found_by_its_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_class_sets(given) == read_class_sets(PROJECT / "configs/datasets/cityscapes.yaml")
    with pytest.raises(UserError, match=r"^cityscape: no such .*; the nearest data set is cityscapes$"):
        read_class_sets("cityscape")
    write_description(tmp_path).rename("cityscapes")
    assert read_class_sets("cityscapes") == {"village3": class_set()}


def test_what_names_no_class_set_is_refused(tmp_path: Path) -> None:
    unlabelled = write_shards(tmp_path / "shards", [("a", {"image.png": b""})], class_sets={})
    description = write_description(tmp_path / "village", class_sets=None, label=None)
    for place in (unlabelled.folder, description):
        with pytest.raises(UserError, match=f"{place}: names no class set; expected labelled shards, or a description"):
            read_class_sets(place)
    for content in (3, {"village3": [{"name": "road"}]}):
        with pytest.raises(UserError, match=r"village\.yaml: "):
            read_class_sets(write_description(tmp_path / "village", class_sets=content))
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such"):
        read_class_sets(tmp_path / "nowhere.yaml")


def test_classes_are_the_same_by_name_and_order() -> None:
    road, house, sky = class_set()
    known = {"village3": class_set()}
    assert same_classes("village3", class_set(), known) == class_set()
    assert same_classes("village3", (house, road, sky), known) is None
    assert same_classes("other3", class_set(), known) is None
    assert class_names(class_set()) == [entry["name"] for entry in CLASS_ENTRIES]


@pytest.mark.parametrize("read", [read_class_sets, open_shards])
def test_a_url_is_never_taken_for_a_path(read: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"^http://host/a//b: is far away, and no cache is given$"):
        read("http://host/a//b")
