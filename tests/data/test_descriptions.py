"""However a description is edited, it gives a layout or one message that names its file or folder."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.layouts import read_layout
from esl_dist.errors import UserError
from tests.builders import SPLIT, description, write_pictures

KEYS = (
    *("name", "root", "image", "label", "splits", "class_sets", "ignore_ids", "ignore_colors", "label_colors"),
    *("exif_orientation", "id_names", "label_channel", "keep_aspect_ratio", "unknown"),
)
PLACES = [
    *((key,) for key in KEYS),
    *(("splits", SPLIT, key) for key in ("names", "list", "label", "unknown")),
    *(("class_sets", "village3", *rest) for rest in ((), (0,), (1, "ids"), (1, "color"), (1, "name"))),
]
TEXTS = st.sampled_from(
    (
        *("", "*", "**", "[", "/", "..", "~", "???", "\0", "é", "%s", "${x}", "${oc.env:HOME}", "village3"),
        *("{name", "{name}", "{name}{name}", "{split}/images/{name}.*", "a\n{name}"),
    )
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 70000), st.floats(), TEXTS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["names", "ids", "color"]), TEXTS, st.integers()), inner, max_size=2),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("village")
    write_pictures(path, ["a", "b/c"])
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {SPLIT: {"names": "*"}}}, r"splits\.train\.names: expected list\[str\], such as .*, got '\*'"),
        ({"splits": {SPLIT: {"names": None}}}, r"splits\.train\.names: expected list\[str\], .*, got nothing \(null\)"),
        ({"splits": {SPLIT: {"names": [["a"]]}}}, r"splits\.train\.names\[0\]: expected str, got \['a'\]"),
        ({"splits": {SPLIT: ["*"]}}, r"splits\.train: expected {names: .*} or {list: .*}, got \['\*'\]"),
        ({"splits": {SPLIT: None}}, r"splits\.train: expected {names: .*} or {list: .*}, got nothing"),
        ({"splits": {1: {"names": ["*"]}}}, r"no split 'train'; it names 1"),
        ({"ignore_ids": 5}, r"ignore_ids: expected a list, such as \[0, 1\], got 5"),
        ({"class_sets": [1]}, r"class_sets: expected a mapping, .*, got \[1\]"),
    ],
)
def test_a_value_of_another_type_is_refused_in_plain_words(tmp_path: Path, changes: dict, message: str) -> None:
    file = tmp_path / "village.yaml"
    file.write_text(yaml.safe_dump(description() | changes), encoding="utf-8")
    with pytest.raises(UserError, match=rf"village\.yaml: {message}"):
        read_layout(file, SPLIT)


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_an_edited_description_works_or_says_what_is_wrong(folder: Path, place: tuple, value: Any) -> None:
    content = copy.deepcopy(description(root=str(folder)))
    inside: Any = content
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    file = folder / "edited.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        layout = read_layout(file, SPLIT)
    except UserError as error:
        said = str(error)
        assert str(file) in said or str(folder) in said or place == ("root",)
    else:
        assert layout.pairs
        assert all(path.is_file() for pair in layout.pairs for path in pair.files().values())
