"""What lies in a data set's folders is a sample, or is refused or told by name: nothing is passed over in silence."""

import errno
import itertools
import os
import unicodedata
from pathlib import Path

import pytest

from esl_dist.data.layouts import Layout, read_layout
from esl_dist.errors import UserError
from tests.builders import SPLIT, write_description


def put(folder: Path, *names: str, kinds: tuple[str, ...] = ("images", "labels")) -> None:
    """Make empty files below the folders of pictures and labels; a layout looks at names alone."""
    for kind, name in itertools.product(kinds, names):
        path = folder / SPLIT / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def layout(folder: Path, *names: str, **changes: object) -> Layout:
    content = {"splits": {SPLIT: {"names": list(names or ["*"])}}, **changes}
    return read_layout(write_description(folder, **content), SPLIT)


def files(layout: Layout) -> list[tuple[str, str, str]]:
    return [(pair.name, pair.image.name, pair.label.name) for pair in layout.pairs]


def names(layout: Layout) -> list[str]:
    return [pair.name for pair in layout.pairs]


@pytest.mark.parametrize("extension", [".png", ".PNG", ".Png", ".*"])
def test_extensions_in_capitals_are_found(tmp_path: Path, extension: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.png", kinds=("images",))
    put(tmp_path, "a.PNG", kinds=("labels",))
    put(tmp_path, "b.PNG", "c.pNg")
    found = layout(tmp_path, image=f"{{split}}/images/{{name}}{extension}")
    assert files(found) == [("a", "a.png", "a.PNG"), ("b", "b.PNG", "b.PNG"), ("c", "c.pNg", "c.pNg")]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_two_files_that_differ_only_in_capitals_are_refused(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "a.png", "b.png")
    put(tmp_path, "a.PNG", kinds=(kind,))
    with pytest.raises(UserError, match=rf"^two files of one sample: .*{kind}/a\.PNG, .*{kind}/a\.png; remove one$"):
        layout(tmp_path)
    assert len(layout(tmp_path, "b*").pairs) == 1, "a sample of no name that is taken is nobody's"


@pytest.mark.parametrize("extension", ["jpe", "bmp", "tif", "TIFF", "webp", "gif", "ppm", "pgm", "jp2", "Jpeg"])
def test_any_extension_of_pictures_stands_for_a_star(tmp_path: Path, extension: str) -> None:
    put(tmp_path, "a.png", kinds=("labels",))
    put(tmp_path, f"a.{extension}", "a.txt", "Thumbs.db", kinds=("images",))
    assert files(layout(tmp_path, image="{split}/images/{name}.*")) == [("a", f"a.{extension}", "a.png")]


def test_pictures_of_another_extension_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.png", *(f"b{number}.png" for number in range(3)))
    put(tmp_path, "a.jpg", *(f"c{number}.JPG" for number in range(7)), "d.webp", "e.txt", kinds=("images",))
    assert names(layout(tmp_path)) == ["a", "b0", "b1", "b2"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "8 pictures differ from the pattern train/images/{name}.png in nothing but their extension" in line
    assert line.endswith("c0.JPG, c1.JPG, c2.JPG, c3.JPG, c4.JPG, …")
    layout(tmp_path, "b*")
    assert capsys.readouterr().err == "", "what the names do not take is not missed"


def test_a_split_of_pictures_with_another_extension_alone_says_so(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", kinds=("images",))
    with pytest.raises(UserError, match=r"has no pictures \(.*\); 1 pictures differ .*: a\.jpg$"):
        layout(tmp_path)


def test_a_missing_file_names_the_one_with_another_extension(tmp_path: Path) -> None:
    put(tmp_path, "a.png", kinds=("images",))
    put(tmp_path, "a.bmp", kinds=("labels",))
    with pytest.raises(UserError, match=r"^1 files .*labels/a\.png \(there is a\.bmp\); a sample is"):
        layout(tmp_path)


def test_labels_beside_their_pictures_are_no_pictures_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.jpg", "a_seg.png", "inner/b.jpg", "inner/b_seg.png", kinds=("images",))
    patterns = {"image": "{split}/images/{name}.jpg", "label": "{split}/images/{name}_seg.png"}
    assert names(layout(tmp_path, "**", **patterns)) == ["a", "inner/b"]
    unlabelled = {SPLIT: {"names": ["**"], "label": None}}
    assert names(layout(tmp_path, splits=unlabelled, **patterns)) == ["a", "inner/b"]
    assert capsys.readouterr().err == ""


NAME = "Straße é ガ"
FORMS = ("NFC", "NFD")


@pytest.mark.parametrize(("image", "label", "listed"), list(itertools.product(FORMS, FORMS, (None, *FORMS))))
def test_unicode_forms_of_a_name_are_one_name(tmp_path: Path, image: str, label: str, listed: str | None) -> None:
    for kind, form in (("images", image), ("labels", label)):
        put(tmp_path, f"ü/{NAME}.png".replace("ü/" + NAME, unicodedata.normalize(form, f"ü/{NAME}")), kinds=(kind,))
    split: dict[str, object] = {"names": ["ü/*é*"]}
    if listed is not None:
        (tmp_path / "l.txt").write_text(unicodedata.normalize(listed, f"ü/{NAME}\n"), encoding="utf-8")
        split = {"list": "l.txt"}
    (pair,) = layout(tmp_path, splits={SPLIT: split}).pairs
    assert pair.name == unicodedata.normalize("NFC", f"ü/{NAME}")
    assert all(path.is_file() for path in pair.files().values())


@pytest.mark.parametrize("form", FORMS)
def test_folders_of_a_pattern_are_found_in_any_form(tmp_path: Path, form: str) -> None:
    put(tmp_path, "Bäume/1/a.png".replace("Bäume", unicodedata.normalize(form, "Bäume")))
    for written in FORMS:
        folder = unicodedata.normalize(written, "Bäume")
        patterns = {kind: f"{{split}}/{kind}s/{folder}/1/{{name}}.png" for kind in ("image", "label")}
        assert names(layout(tmp_path, **patterns)) == ["a"]


def test_two_files_whose_names_differ_only_in_their_form_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *(unicodedata.normalize(form, "é.png") for form in FORMS))
    with pytest.raises(UserError, match=r"^two files of one sample: "):
        layout(tmp_path)


@pytest.mark.parametrize("name", [b"stra\xdfe", b"a\x07b", b"line\nbreak", b"inner/\xff/c"])
@pytest.mark.parametrize("pattern", ["*", "**"])
def test_a_name_that_no_shard_could_hold_is_refused(tmp_path: Path, name: bytes, pattern: str) -> None:
    if b"/" in name and pattern == "*":
        pattern = "inner/*/*"
    put(tmp_path, os.fsdecode(name + b".png"))
    with pytest.raises(UserError, match=r"sample '.*' is impossible: .*(not UTF-8; rename it|control characters)") as e:
        layout(tmp_path, pattern)
    str(e.value).encode()  # It can be printed.


def test_names_of_other_splits_may_be_what_they_are(tmp_path: Path) -> None:
    put(tmp_path, "a.png", os.fsdecode(b"b\xdf.png"))
    assert names(layout(tmp_path, "a")) == ["a"]


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/**"])
def test_two_stars_take_every_depth(tmp_path: Path, pattern: str) -> None:
    put(tmp_path, "a.png", "x/b.png", "x/y/z/c.png", "x/.hidden/d.png")
    assert names(layout(tmp_path, pattern)) == ["a", "x/b", "x/y/z/c"]


def test_two_stars_take_folders_within_a_name(tmp_path: Path) -> None:
    put(tmp_path, "x/1/a.png", "x/2/b.png", "y/1/c.png", "x/d.png")
    assert names(layout(tmp_path, "x/**")) == ["x/1/a", "x/2/b", "x/d"]
    assert names(layout(tmp_path, "**/1/*")) == ["x/1/a", "y/1/c"]
    prefixed = {kind: f"{{split}}/{kind}s/x/{{name}}.png" for kind in ("image", "label")}
    assert names(layout(tmp_path, "**", **prefixed)) == ["1/a", "2/b", "d"]


def test_sub_folders_that_a_split_leaves_out_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.png", *(f"x/{number}/b.png" for number in range(6)))
    assert names(layout(tmp_path)) == ["a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "6 pictures in sub-folders are passed over; names: ['**/*'] takes them too: x/0/b.png, x/1/b.png" in line
    assert line.endswith("x/4/b.png, …")
    assert len(layout(tmp_path, "**/*").pairs) == 7
    layout(tmp_path, splits={SPLIT: {"names": ["a*"]}})
    assert capsys.readouterr().err == "", "b is no name that the split takes"


def test_sub_folders_of_another_split_are_not_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.png", "night/b.png")
    patterns = {kind: f"{SPLIT}/{kind}s/{{name}}.png" for kind in ("image", "label")}
    layout(tmp_path, splits={SPLIT: {"names": ["*"]}, "night": {"names": ["night/*"]}}, **patterns)
    assert capsys.readouterr().err == ""


def test_pictures_in_sub_folders_alone_are_named_with_what_to_write(tmp_path: Path) -> None:
    put(tmp_path, "x/a.png", "x/y/b.png")
    with pytest.raises(UserError, match=r"has no pictures .*; 2 pictures in sub-folders .* names: \['\*\*/\*'\] .*x/a"):
        layout(tmp_path)
    with pytest.raises(UserError, match=r"has no pictures .*; there is no folder .*train/pictures"):
        layout(tmp_path, image="{split}/pictures/{name}.png", label="{split}/pictures/{name}_l.png")
    with pytest.raises(UserError, match=r"has no pictures .*; names are written without the extension"):
        layout(tmp_path, "x/*.png")


def test_hidden_pictures_are_told_and_resource_forks_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.png", ".b.png", "._a.png", ".DS_Store", "Thumbs.db", ".thumbs/a.png", "__MACOSX/._a.png")
    assert names(layout(tmp_path)) == ["a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 pictures are hidden and passed over" in line
    assert line.endswith(": .b.png, .thumbs/a.png")
    assert names(layout(tmp_path, "*", ".b*")) == [".b", "a"]


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("listed", [False, True])
def test_what_is_named_like_a_picture_and_is_none_is_refused(tmp_path: Path, kind: str, listed: bool) -> None:
    put(tmp_path, "a.png", "b.png")
    path = tmp_path / SPLIT / kind / "b.png"
    (tmp_path / "l.txt").write_text("a\nb\n")
    split = {"list": "l.txt"} if listed else {"names": ["*"]}
    makers = {
        "a folder": path.mkdir,
        "a link that leads nowhere": lambda: path.symlink_to("absent.png"),
        "a link that leads nowhere ": lambda: path.symlink_to("b.png"),
        "neither a file nor a folder": lambda: os.mkfifo(path),
    }
    for what, make in makers.items():
        path.rmdir() if path.is_dir() else path.unlink()
        make()
        with pytest.raises(
            UserError, match=rf"^1 of the split's files are no files: .*{kind}/b\.png: {what.strip()}; "
        ):
            layout(tmp_path, splits={SPLIT: split})


def test_links_to_files_and_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "b.png")
    put(tmp_path, "a.png")
    for kind in ("images", "labels"):
        folder = tmp_path / SPLIT / kind
        (folder / "there").symlink_to(tmp_path / "elsewhere" / SPLIT / kind)
        (folder / "c.png").symlink_to(folder / "a.png")
        (folder / "loop").symlink_to(folder)
        (tmp_path / "elsewhere" / SPLIT / kind / "back").symlink_to(folder)
    assert names(layout(tmp_path, "**")) == ["a", "c", "there/b"]


def linked_folders(folder: Path, number: int) -> None:
    """Make folders that each hold a sample and links to all others."""
    for kind in ("images", "labels"):
        put(folder, *(f"{one}/a.png" for one in range(number)), "a.png", kinds=(kind,))
        for one, other in itertools.permutations(range(number), 2):
            (folder / SPLIT / kind / f"{one}" / f"to_{other}").symlink_to(folder / SPLIT / kind / f"{other}")


def test_links_deeper_than_samples_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked_folders(tmp_path, 8)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), scandir(path))[1])
    assert names(layout(tmp_path)) == ["a"]
    assert len(listed) == 2 * 9
    assert len(layout(tmp_path, "*/*/*").pairs) == 8 * 7


def test_links_that_lead_to_a_folder_in_endless_ways_are_refused(tmp_path: Path) -> None:
    linked_folders(tmp_path, 8)
    with pytest.raises(UserError, match="links between folders lead there in more than 1000 ways"):
        layout(tmp_path, "**")


def test_a_folder_that_may_not_be_listed_is_refused_where_samples_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.png", "open/c.png", "closed/b.png")
    closed = "images/closed"
    scandir = os.scandir

    def guarded(path: str) -> object:
        if path.endswith(closed):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert names(layout(tmp_path)) == ["a"]
    with pytest.raises(UserError, match=r"cannot be listed: .*images/closed \(Permission denied\)"):
        layout(tmp_path, "**")
    with pytest.raises(UserError, match="cannot be listed"):
        layout(tmp_path, "*/*")
    closed = "images"
    with pytest.raises(UserError, match="cannot be listed"):
        layout(tmp_path)


@pytest.mark.parametrize("split", [{"names": ["**"]}, {"list": "l.txt"}])
def test_every_folder_is_listed_once_however_many_samples_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: dict
) -> None:
    samples = [f"{number % 3}/{number}" for number in range(60)]
    put(tmp_path, *(f"{name}.png" for name in samples))
    (tmp_path / "l.txt").write_text("\n".join(samples))
    listed: list[str] = []
    scandir = os.scandir

    def counted(path: str) -> object:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(Path, "is_file", None)
    assert len(layout(tmp_path, splits={SPLIT: split}).pairs) == 60
    assert len(listed) == len(set(listed)) == 8
