"""List files are read as the field writes them; what they say wrongly is named with file and line."""

import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.layouts import read_layout
from esl_dist.data.patterns import FilePattern
from esl_dist.data.split_lists import read_list
from esl_dist.errors import UserError
from tests.builders import SPLIT, write_description

PATTERNS = {"image": "VOC/JPEGImages/{name}.jpg", "label": "VOC/SegmentationClass/{name}_label.png"}
IMAGE, LABEL = (FilePattern.cut(PATTERNS[kind]) for kind in ("image", "label"))
NAMES = ("0", "2007_000032", "ulm/ulm_1", "with blank", "a,b", "é", "#1", "x.y", "JPEGImages")


def read(folder: Path, content: str | bytes, label: FilePattern | None = LABEL, known: tuple[str, ...] = NAMES) -> list:
    file = folder / "l.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_list(file, folder / "root", [IMAGE] if label is None else [IMAGE, label], known))


def layout(folder: Path, content: str, *samples: str) -> list[str]:
    for pattern, name in itertools.product((IMAGE, LABEL), samples):
        path = folder / pattern.file_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "l.txt").write_text(content)
    file = write_description(folder, splits={SPLIT: {"list": "l.txt"}}, **PATTERNS)
    return [pair.name for pair in read_layout(file, SPLIT).pairs]


@st.composite
def lines(draw: st.DrawFn, name: str) -> str:
    """Write a sample in one of the forms of the field: a name or a path, alone or with its label."""
    one = draw(st.sampled_from([name, f"{name}.jpg", f"{name}.JPG", f"JPEGImages/{name}.jpg", IMAGE.file_of(name)]))
    start = draw(st.sampled_from(["", "./", "/"])) if one.endswith((".jpg", ".JPG")) else ""
    other = draw(st.sampled_from(["", f"/SegmentationClass/{name}_label.png", LABEL.file_of(name)]))
    separator = draw(st.sampled_from(["\t"] if " " in name or "," in name else ["\t", " ", "   ", ",", ", "]))
    more = draw(st.sampled_from([[], ["0.5"]])) if other else []
    return separator.join([start + one, *([other] if other else []), *more])


@settings(max_examples=60, deadline=None)
@given(st.permutations(NAMES), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans(), st.data())
def test_a_list_in_any_form_of_the_field_gives_its_names(
    names: list[str], end: str, mark: bool, labelled: bool, data: st.DataObject
) -> None:
    written = [data.draw(lines(name)) for name in names]
    fillers = [data.draw(st.sampled_from([[], [""], ["  "], ["# a comment, 0.jpg"], ["#"]])) for _ in names]
    content = end.join(itertools.chain(*([*filler, line] for filler, line in zip(fillers, written, strict=True))))
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), ("\ufeff" if mark else "") + content, LABEL if labelled else None)
    assert found == list(names)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("0  # the first", "0"),
        ('"0.jpg";"0_label.png"', "0"),
        (r"VOC\JPEGImages\ulm\ulm_1.jpg", "ulm/ulm_1"),
        ("ulm//ulm_1/", "ulm/ulm_1"),
        ("e\u0301.jpg", "é"),
    ],
)
def test_other_ways_to_write_a_sample(tmp_path: Path, line: str, name: str) -> None:
    assert read(tmp_path, line) == [name]


def test_a_path_may_begin_with_the_data_set_s_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    for root in ("root", "real"):
        assert read(tmp_path, f"{tmp_path}/{root}/VOC/JPEGImages/0.jpg") == ["0"]


def test_a_name_that_is_there_goes_before_what_it_may_mean_else(tmp_path: Path) -> None:
    known = ("0.jpg", "0", "JPEGImages/0", "1", "a b", "a")
    assert read(tmp_path, "0.jpg\nJPEGImages/0\n0\n1.jpg\na b", known=known) == [
        "0.jpg",
        "JPEGImages/0",
        "0",
        "1",
        "a b",
    ]


def test_a_second_column_that_is_not_the_label_is_refused_with_its_line(tmp_path: Path) -> None:
    for column in ("SegmentationClass/1_label.png", "SegmentationClass/0.png", "-1", "labels/0_label.png"):
        with pytest.raises(UserError, match=rf"l\.txt: line 2: '0\.jpg {column}': the second column is not the label"):
            read(tmp_path, f"ulm/ulm_1\n0.jpg {column}\n")
    assert read(tmp_path, "0.jpg -1\n", label=None) == ["0"], "without labels there is nothing to hold it against"


@pytest.mark.parametrize("line", ["0 copy.jpg", "0,5.jpg", "0 copy/of.jpg", "0\t10.png"])
def test_a_name_that_is_not_there_is_not_taken_for_its_beginning(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=r"l\.txt: line 2: '0.*': no sample has that name"):
        read(tmp_path, f"ulm/ulm_1\n{line}\n", label=None)


@pytest.mark.parametrize("line", ["0 0_color.png", "0,masks/0.png", "0.jpg masks/any.png", "0 1"])
def test_a_second_column_that_may_be_a_label_is_passed_over_without_labels(tmp_path: Path, line: str) -> None:
    assert read(tmp_path, line, label=None) == ["0"]


def test_a_list_that_is_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "l.txt")
    file = write_description(tmp_path, splits={SPLIT: {"list": "l.txt"}})
    (tmp_path / SPLIT).mkdir()
    with pytest.raises(UserError, match=r"list .*l\.txt cannot be read \(it is no regular file"):
        read_layout(file, SPLIT)


def test_a_sample_named_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"l\.txt: names a sample twice: '0', in lines 1 and 4; remove one"):
        read(tmp_path, "0\n\n# 0\n/JPEGImages/0.jpg\n")


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n", "\ufeff"])
def test_a_list_without_samples_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"l\.txt: names no sample; expected one a line"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\n".encode("utf-16"), "UTF-16 or no text"),
        ("0\n".encode("utf-16-be"), "UTF-16 or no text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "UTF-16 or no text"),
        ("0\r\n\r\nstraße".encode("latin-1"), "line 3 is not UTF-8"),
    ],
)
def test_a_list_that_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
    file = write_description(tmp_path, splits={SPLIT: {"list": "l.txt"}})
    with pytest.raises(
        UserError, match=rf"village\.yaml: the split's list .*l\.txt cannot be read \(.*{message}.*UTF-8"
    ):
        read_layout(file, SPLIT)


@pytest.mark.parametrize("name", ["a\x07b", "x" * 256, f"a/{'é' * 128}"])
def test_a_name_that_cannot_be_one_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"l\.txt: line 2: sample '.*' is impossible: "):
        read(tmp_path, f"0\n{name}\n")


def test_lines_of_samples_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^4 files .*JPEGImages/x\.jpg, .*Class/x_label\.png, .*y.*; see line 2 of .*l\.txt, line 3 of .*l\.txt$",
    ):
        layout(tmp_path, "0\nx\n/JPEGImages/y.jpg /SegmentationClass/y_label.png", "0")


def test_pictures_are_paired_as_a_list_says(tmp_path: Path) -> None:
    content = (
        "# VOC\n/JPEGImages/b.jpg /SegmentationClass/b_label.png\n/JPEGImages/a.jpg\t/SegmentationClass/a_label.png"
    )
    assert layout(tmp_path, content, "a", "b", "c") == ["a", "b"]
