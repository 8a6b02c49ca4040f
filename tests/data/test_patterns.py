"""Patterns of names take what a shell's would; patterns of files find the name in a path, whatever its extension."""

import glob
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.data.patterns import EXTENSIONS, FilePattern, NamePattern, composed

WORDS = ("a", "b", "ab", ".a", "é", "[a]")
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("/".join)
PATTERNS = st.lists(st.sampled_from(("*", "**", "?", "a*", "[ab]", "[!a]", ".*", "a")), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=8), PATTERNS.map("/".join))
def test_a_pattern_of_names_takes_what_a_shell_would(names: set[str], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        # At the end a shell takes `**` for `*`; here it takes the files of all folders.
        shell = f"{pattern}/*" if pattern.endswith("**") else pattern
        found = glob.glob(f"{shell}.png", root_dir=folder, recursive=True)
    expected = {name for name in names if f"{name}.png" in found}
    assert {name for name in names if NamePattern.cut(pattern).takes(name)} == expected


def test_folders_without_end_are_as_fast_as_one() -> None:
    pattern = NamePattern.cut("/".join(["**"] * 40 + ["x"]))
    assert pattern == NamePattern.cut("**/x")
    assert pattern.takes("/".join(["a"] * 30 + ["x"]))
    assert not pattern.takes("/".join(["a"] * 30))


def test_a_dot_within_a_file_s_name_hides_nothing() -> None:
    assert NamePattern.cut("*").takes(".1", within=True)
    assert not NamePattern.cut("*").takes(".1")
    assert not NamePattern.cut("*/*").takes("a/.1", within=True)


@pytest.mark.parametrize(("text", "deeper"), [("*", "**/*"), ("a*/b*", "a*/**/b*"), ("**", "**/*"), ("**/*", "**/*")])
def test_the_deeper_pattern_looks_into_sub_folders_too(text: str, deeper: str) -> None:
    assert str(NamePattern.cut(text).deeper()) == deeper


PARTS = st.sampled_from(["", "x", "x/", "x/y_", "é/_"])
ENDS = st.sampled_from(["", "_label", ".b", "/rgb"])


@given(PARTS, NAMES, ENDS, st.sampled_from(["", ".png", ".PNG", ".*", ".raw"]), st.data())
def test_a_name_put_into_a_pattern_is_found_in_the_path(
    start: str, name: str, end: str, extension: str, data: st.DataObject
) -> None:
    pattern = FilePattern.cut(f"{start}{{name}}{end}{extension}")
    assert str(pattern) == composed(f"{start}{{name}}{end}{extension}")
    kind = data.draw(st.sampled_from(EXTENSIONS)) if extension == ".*" else extension
    capitals = "".join(data.draw(st.sampled_from([sign.lower(), sign.upper()])) for sign in kind)
    path = f"{start}{name}{end}{capitals}".removeprefix(pattern.folder)
    assert pattern.name_in(path) == name
    assert pattern.name_in(path, other_extension=True) is None


@pytest.mark.parametrize("path", ["a.jpg", "a.JPG", "a.tif", "a.webp"])
def test_a_picture_of_another_extension_is_told_from_other_files(path: str) -> None:
    pattern = FilePattern.cut("images/{name}.png")
    assert pattern.name_in(path) is None
    assert pattern.name_in(path, other_extension=True) == "a"
    assert FilePattern.cut("images/{name}.*").name_in(path) == "a"


@pytest.mark.parametrize("path", ["a.txt", "a", ".png", "a.png.json"])
def test_other_files_are_none_of_the_pattern(path: str) -> None:
    for text in ("{name}.png", "{name}.*"):
        pattern = FilePattern.cut(text)
        assert (pattern.name_in(path), pattern.name_in(path, other_extension=True)) == (None, None)
