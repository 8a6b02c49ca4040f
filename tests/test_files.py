"""A file is whole or absent."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from esl_dist import files
from esl_dist.errors import UserError
from esl_dist.files import (
    PARTIAL_SUFFIX,
    make_folder,
    read_json,
    refuse_as_key,
    refuse_as_label,
    refuse_as_name,
    sha256_of_file,
    whole_file,
    write_json,
)

KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
from esl_dist.files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""


def write_half(file: IO[bytes], error: type[BaseException]) -> None:
    file.write(b"half")
    raise error


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with whole_file(path) as file:
        file.write(b"some ")
        file.flush()
        assert not path.exists()
        file.write(b"bytes")
    assert path.read_bytes() == b"some bytes"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_file_as_it_was_and_nothing_beside_it(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as file:
        write_half(file, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_no_file_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False)
    assert done.returncode == 9
    assert [found.name for found in tmp_path.iterdir()] == [f"file{PARTIAL_SUFFIX}"]
    with whole_file(path) as file:
        file.write(b"w")
    assert path.read_bytes() == b"w"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would show cannot be tried; the order of the calls can."""
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths))[1])
    with whole_file(tmp_path / "file") as file:
        file.write(b"bytes")
    assert calls == ["sync", "rename", "sync"]


def test_folders_that_are_made_on_the_way_survive_as_the_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.add(os.fstat(descriptor).st_ino), sync(descriptor))[1])
    with whole_file(tmp_path / "a" / "b" / "file"):
        pass
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")} < synced
    make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError, match="file"):
        make_folder(tmp_path / "a" / "b" / "file")


@pytest.fixture
def syncing_folders(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets every fsync of a folder fail with an error number."""
    sync = os.fsync

    def let_fail(number: int) -> None:
        def failing(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        monkeypatch.setattr(files, "_told_of_folders", False)

    return let_fail


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_folders_is_written_to_with_one_warning(
    tmp_path: Path,
    syncing_folders: Callable[[int], None],
    number: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    syncing_folders(number)
    for name in ("a", "b", "c"):
        write_json(tmp_path / name / "file.json", [name])
    (warning,) = capsys.readouterr().err.splitlines()
    expected = f"warning: {tmp_path}: this file system cannot flush folders ({os.strerror(number)}); a power cut may"
    assert warning.startswith(expected)
    assert read_json(tmp_path / "c" / "file.json") == ["c"]
    monkeypatch.setenv("RANK", "1")
    syncing_folders(number)
    write_json(tmp_path / "d.json", [])
    assert capsys.readouterr().err == "", "of several ranks the first tells it"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failing_disk_under_a_folder_is_an_error_that_names_it(
    tmp_path: Path, syncing_folders: Callable[[int], None], number: int
) -> None:
    syncing_folders(number)
    with pytest.raises(OSError, match=os.strerror(number)) as found:
        write_json(tmp_path / "file.json", [])
    assert (found.value.errno, found.value.filename) == (number, str(tmp_path))


@pytest.mark.parametrize("indent", [None, 1])
def test_json_comes_back(tmp_path: Path, indent: int | None) -> None:
    content = {"größe": [1, 2.5, None, True], "inner": {"a": "b\nc"}}
    write_json(tmp_path / "file.json", content, indent)
    assert read_json(tmp_path / "file.json") == content
    assert (tmp_path / "file.json").read_bytes().count(b"\n") == 1 or indent is not None


def test_json_that_no_other_reader_would_take_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b'{"a": 1', b"\xff\xfe", b"not json", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b"{}{}"),
        *(b"[NaN]", b"[Infinity]", b"[-Infinity]", b"[1e999]", b"[-1e999]", b"9" * 5000),
        *(b'{"a": 1, "a": 1}', b'[{"b": {"a": 1, "c": 2, "a": 3}}]', b'["\\ud800"]', b'{"\\udfff": 1}'),
        *(b"[" * 100_000 + b"]" * 100_000, b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101),
    ],
)
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.json: cannot be read as JSON .*make it again"):
        read_json(path)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read_json(tmp_path / "absent.json")


def test_json_may_nest_and_escape_as_far_as_any_reader_follows(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"[" * 100 + b'"\\u00e4\\ud83d\\ude00"' + b"]" * 100)
    content = read_json(path)
    while isinstance(content, list):
        [content] = content
    assert content == "ä😀"


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a folder"])
def test_what_is_no_file_in_place_of_json_is_named_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.json"
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "link to a folder": lambda: path.symlink_to(tmp_path),
    }[kind]()
    with pytest.raises(UserError, match=r"file\.json: cannot be read as JSON \(it is no file\)"):
        read_json(path)


def test_json_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    # Its first bytes belong to no memory: reading them is an I/O error.
    path.symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"file\.json: cannot be read as JSON .*Input/output error"):
        read_json(path)


def test_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1_000_000)
    assert sha256_of_file(path) == hashlib.sha256(b"x" * 1_000_000).hexdigest()


def test_a_write_that_fails_names_its_file_and_what_else_fails_does_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    partial = tmp_path / f"file{PARTIAL_SUFFIX}"
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as full, whole_file(path) as file:
        file.write(b"x")
    assert full.value.filename == str(partial)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Too many open files") as other, whole_file(path):
        raise OSError(errno.EMFILE, "Too many open files")
    assert other.value.filename is None


def test_a_disk_that_fails_to_flush_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as error, whole_file(tmp_path / "file") as file:
        file.write(b"x")
    assert error.value.filename == str(tmp_path / f"file{PARTIAL_SUFFIX}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        ("..", "'..'"),
        ("a/b", "'/'"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("ä" * 128, "256 bytes"),
        ("stra\udcdfe", "not UTF-8"),
    ],
)
def test_a_name_that_can_be_no_part_of_a_path_is_refused(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        refuse_as_name(name, "name")
    with pytest.raises(UserError, match="key"):
        refuse_as_key(f"frankfurt/{name}/x" if "/" not in name else f"/{name}", "key")


@pytest.mark.parametrize(
    "label",
    [
        *("", "a\0b", "a\nb", "a\x9bb", "x" * 256, "stra\udcdfe"),
        *("a\u2028b", "a\u2029b", "a\u202eb", "a\u2066b", "\ufeffa", "a\u200bb"),
    ],
)
def test_what_cannot_be_printed_is_no_label(label: str) -> None:
    with pytest.raises(UserError, match=r"class .* is impossible"):
        refuse_as_label(label, "class")


def test_a_key_longer_than_a_path_is_refused() -> None:
    refuse_as_key("a/" * 2047 + "b", "key")
    with pytest.raises(UserError, match="4097 bytes; expected at most 4095"):
        refuse_as_key("a/" * 2048 + "b", "key")


def test_possible_names_and_keys_are_let_through() -> None:
    refuse_as_label("traffic light / sign, größer als ..", "class")
    refuse_as_label("می\u200cخواهم \u3000\xa0🚗", "class")
    refuse_as_name("a\u2028b", "name of a file that is there")
    refuse_as_name("ä" * 127, "name")
    refuse_as_name("Straße 1", "name")
    refuse_as_key("frankfurt/frankfurt_000000_000294", "key")


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "n" * 247])
def test_a_file_may_have_as_long_a_name_as_there_can_be(tmp_path: Path, name: str) -> None:
    with whole_file(tmp_path / name) as file:
        file.write(b"x")
        assert [one.name.endswith(".partial") for one in tmp_path.iterdir()] == [True]
    assert [one.name for one in tmp_path.iterdir()] == [name]
