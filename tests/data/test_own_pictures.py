"""One's own pictures are found by a folder, a pattern or a list, each under a name of its own, and read upright."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esl_dist.data.own_pictures import PictureFiles, find_pictures, is_video
from esl_dist.errors import CorruptSampleError, UserError
from tests.builders import draw, encoded

LARGEST = 10**6


def write(folder: Path, *paths: str) -> None:
    """Write a picture of another seed under each path; what is not named like a picture holds text."""
    for seed, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        kinds = {".png": "PNG", ".jpg": "JPEG", ".JPG": "JPEG"}
        file.write_bytes(encoded(draw(seed)[0], kinds[file.suffix]) if file.suffix in kinds else b"text")


def found(place: Path | str) -> PictureFiles:
    return find_pictures(str(place), LARGEST)


def test_a_folder_gives_the_pictures_below_it_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(
        tmp_path, "b/2.png", "a.jpg", "b/1.JPG", "b/c/x.y.png", "notes.txt", ".hidden.png", ".cache/d.png", "film.mp4"
    )
    pictures = found(tmp_path)
    assert pictures.names == ["a", "b/1", "b/2", "b/c/x.y"]
    assert [str(file.relative_to(tmp_path)) for file in pictures.files] == [
        "a.jpg",
        "b/1.JPG",
        "b/2.png",
        "b/c/x.y.png",
    ]
    assert pictures.passed_over == [".cache/d.png", ".hidden.png", "film.mp4", "notes.txt"]
    assert pictures.where(1) == str(tmp_path / "b/1.JPG")


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("frames/*.png", ["1", "2"], []),
        ("frames/*", ["1", "2", "3"], ["readme.md"]),
        ("frames/**/*.jpg", ["3", "more/4"], []),
        ("*/more/?.jpg", ["frames/more/4"], []),
        ("frames/[12].png", ["1", "2"], []),
        ("frames/**/**/*.jpg", ["3", "more/4"], []),
    ],
)
def test_a_pattern_names_pictures_by_what_follows_its_fixed_part(
    tmp_path: Path, pattern: str, names: list[str], others: list[str]
) -> None:
    write(tmp_path, "frames/2.png", "frames/1.png", "frames/3.jpg", "frames/more/4.jpg", "frames/readme.md")
    pictures = found(tmp_path / pattern)
    assert (pictures.names, pictures.passed_over) == (names, others)


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "run[1]/a.png")
    assert found(tmp_path / "run[1]").names == ["a"]


def test_a_list_gives_its_pictures_relative_to_its_folder(tmp_path: Path) -> None:
    write(tmp_path, "lists/a/1.png", "lists/2.jpg", "elsewhere/3.png", "lists/raw.data")
    (tmp_path / "lists/raw.data").write_bytes(encoded(draw(9)[0]))
    write(tmp_path, "lists/b/1.png", "lists/..c/1.png")
    outside, inside = f"{tmp_path}/elsewhere/3.png", f"{tmp_path}/lists/b/1.png"
    lines = ["# chosen", "a/1.png", "", outside, inside, "..c/1.png", "./2.jpg\r", "raw.data"]
    (tmp_path / "lists/mine.txt").write_text("\n".join(lines))
    pictures = found(tmp_path / "lists/mine.txt")
    assert pictures.names == ["..c/1", "2", "3", "a/1", "b/1", "raw.data"]
    np.testing.assert_array_equal(pictures.pixels(5), draw(9)[0][:, :, ::-1])


def test_a_missing_picture_of_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\ngone.png\n")
    with pytest.raises(UserError, match=r"mine\.txt: line 2: .*gone\.png: no such file; correct the list"):
        found(tmp_path / "mine.txt")


def test_a_list_that_names_a_picture_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "mine.txt").write_text("a.png\na.png\n")
    with pytest.raises(UserError, match=r"mine\.txt: names .*/a\.png twice; take one line out"):
        found(tmp_path / "mine.txt")


def test_what_has_no_pictures_extension_keeps_its_whole_name(tmp_path: Path) -> None:
    write(tmp_path, "cam.1", "cam.2", "cam.3.png")
    (tmp_path / "mine.txt").write_text("cam.1\ncam.2\ncam.3.png\n")
    assert found(tmp_path / "mine.txt").names == ["cam.1", "cam.2", "cam.3"]


@pytest.mark.parametrize(
    ("closed", "pattern"),
    [
        ("frames", "frames/*.png"),
        ("frames/b", "frames/*/*.png"),
        ("frames/b", "frames/*/left.png"),
        ("frames/b/c", "frames/**/*.png"),
        ("frames/b/c", "frames/**"),
        ("frames/b/c", "*/b/**/*.png"),
    ],
)
def test_a_folder_in_which_a_pattern_cannot_look_is_refused_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, pattern: str
) -> None:
    write(tmp_path, "frames/left.png", "frames/a/left.png", "frames/b/left.png", "frames/b/c/left.png", "other/d/1.png")
    monkeypatch.chdir(tmp_path)
    scandir, hidden = os.scandir, {tmp_path / closed, tmp_path / "other/d"}

    def guarded(path: str) -> object:
        if Path(path).absolute() in hidden:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", guarded)
        for place, told in ((pattern, closed), (str(tmp_path / pattern), str(tmp_path / closed))):
            with pytest.raises(
                UserError, match=rf"^{told} \(Permission denied\): a folder that cannot be listed; make"
            ):
                found(place)
        hidden.remove(tmp_path / closed)
        assert found(pattern).names == found(str(tmp_path / pattern)).names != []


def test_one_picture_is_one(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    assert found(tmp_path / "a.png").names == ["a"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("empty", "holds no picture; expected png, jpg or such"),
        ("texts", r"holds no picture, but notes\.txt; expected"),
        ("texts/*.png", "holds no picture;"),
        ("nothing.txt", "holds no picture;"),
        ("gone", "gone: there is none; expected a folder, a pattern in quotes, a list"),
        ("gone.mp4", "gone.mp4: there is none"),
    ],
)
def test_where_there_is_no_picture_one_message_says_so(tmp_path: Path, place: str, message: str) -> None:
    write(tmp_path, "texts/notes.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=message):
        found(tmp_path / place)


@pytest.mark.parametrize("other", ["a.jpg", "a.JPG"])
def test_two_pictures_of_one_name_are_refused(tmp_path: Path, other: str) -> None:
    write(tmp_path, "s/a.png", f"s/{other}", "t/a.png")
    with pytest.raises(UserError, match=r"/s/a\.\w+ and .*/s/a\.\w+ would both become s/a\.png; rename one"):
        found(tmp_path)


def test_a_picture_that_would_become_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "s/a.jpg", "s/a.png/b/c.png")
    with pytest.raises(UserError, match=r"/s/a\.jpg would become s/a\.png, a folder for .*/s/a\.png/b/c\.png; rename"):
        found(tmp_path)


def test_names_that_differ_in_their_unicode_form_alone_are_one(tmp_path: Path) -> None:
    write(tmp_path, "caf\u00e9.png", "cafe\u0301.jpg")
    with pytest.raises(UserError, match=r"would both become caf\u00e9\.png"):
        found(tmp_path)


def test_a_picture_is_turned_as_viewers_show_it(tmp_path: Path) -> None:
    stored = draw(0, 16, 12)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(encoded(stored, "PNG", exif=exif))
    shown = found(tmp_path).pixels(0)
    assert shown.shape == (16, 12, 3)
    np.testing.assert_array_equal(shown, np.rot90(stored, -1)[:, :, ::-1])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


TRANSPARENT = np.zeros((4, 4, 4), np.uint8)
BROKEN = {
    "cut": (cut(encoded(draw(0, 20, 20)[0])), "not a whole picture"),
    "text": (b"text", "not a picture in a format that can be read"),
    "empty": (b"", "an empty file"),
    "large": (encoded(draw(0, 40, 30)[0]), "40×30 pixels, more than 0.001 megapixels; raise largest_megapixels"),
    "deep": (encoded(Image.fromarray(np.zeros((4, 4), np.uint16))), "16 bits a channel"),
    "transparent": (encoded(TRANSPARENT), "16 of its pixels are transparent"),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_picture_is_one_message_with_its_file(tmp_path: Path, kind: str) -> None:
    content, message = BROKEN[kind]
    (tmp_path / f"{kind}.png").write_bytes(content)
    with pytest.raises(CorruptSampleError, match=rf"/{kind}\.png: {message}"):
        find_pictures(str(tmp_path), 1000).pixels(0)


def test_a_picture_that_alone_cannot_be_read_is_one_message_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone")
    pictures = found(tmp_path)
    with pytest.raises(CorruptSampleError, match=r"/b\.png: no such file"):
        pictures.pixels(1)
    # Of root's no permission would do.
    monkeypatch.setattr(Path, "read_bytes", raising(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(CorruptSampleError, match=r"/a\.png: cannot be read \(Permission denied\)"):
        pictures.pixels(0)


def test_pictures_whose_folder_or_disk_is_gone_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.png", "folder/b.png")
    pictures = found(tmp_path)
    (tmp_path / "folder/b.png").unlink()
    for is_mount_point in (True, False):
        if not is_mount_point:
            (tmp_path / "folder").rmdir()
        with pytest.raises(UserError, match=r"/folder/b\.png: cannot be read \(No such file"):
            pictures.pixels(1)
    monkeypatch.setattr(Path, "read_bytes", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(UserError, match=r"/a\.png: cannot be read \(Input/output error\)"):
        pictures.pixels(0)


def raising(error: Exception) -> Callable[[Path], bytes]:
    def read(file: Path) -> bytes:
        raise error

    return read


def test_what_is_neither_list_nor_picture_is_taken_for_a_video(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.txt", "c.mp4", "d")
    assert [name for name in ("a.png", "b.txt", "c.mp4", "d", "gone.mp4", ".") if is_video(str(tmp_path / name))] == [
        "c.mp4",
        "d",
    ]


def test_a_name_that_is_more_than_one_line_is_told_on_one(tmp_path: Path) -> None:
    write(tmp_path, "a\nb.png")
    with pytest.raises(UserError, match="the name of what is made of it") as caught:
        found(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_made_of_a_picture_needs_a_name_that_fits(tmp_path: Path) -> None:
    write(tmp_path / "few", f"{'n' * 251}.png")
    assert found(tmp_path / "few").names == ["n" * 251]
    (tmp_path / "list.txt").write_text("n" * 252)
    (tmp_path / ("n" * 252)).write_bytes(encoded(draw(0)[0]))
    with pytest.raises(UserError, match="it has 256 bytes; expected at most 255"):
        found(tmp_path / "list.txt")
