"""A split's list file → names of samples, as the field writes such files.

A line holds a sample's name, or its picture's file as the lists of VOC or Cityscapes have it: with the extension, with
the pattern's folder or the end of it before the name, with a `/` at the beginning; then, after blanks, a tab or a
comma, its label's file. What follows is not read. Empty lines and those that begin with `#` are passed over.
"""

import codecs
import re
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from esl_dist.data.patterns import FilePattern, composed, is_picture
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_key, shortened

SEPARATORS = (r"\t+", r"\s*[,;]\s*", r"\s+")


@dataclass(frozen=True)
class ListReading:
    """What the lines of a list are held against.

    Attributes:
        roots: the data set's folder, as a line may begin with it (`beginnings`).
        image: the pattern of pictures.
        label: that of labels; None: a second column is not looked at.
        known: the names of the samples that are there, in NFC.
    """

    roots: Sequence[str]
    image: FilePattern
    label: FilePattern | None
    known: Container[str]


def beginnings(root: Path) -> list[str]:
    """Return a folder as an absolute path below it begins: as it is written, and without links."""
    return [f"{composed(one.as_posix())}/" for one in (root.absolute(), root.resolve())]


def read_list(file: Path, reading: ListReading) -> dict[str, int]:
    """Return the names (NFC) of a list and the number of each one's line; a name may be of a sample that is not there.

    Raises:
        ValueError: the file is no text in UTF-8.
        UserError: a name given twice or that leads out of the data set's folder, a second column that is not the label
            of the first; file and line are named.
        OSError: the file cannot be read.
    """
    found: dict[str, int] = {}
    for number, content in enumerate(_contents(file), 1):
        line = _Line(composed(content.strip()), f"{file}: line {number}")
        name = _name(line, reading) if line.text else None
        if name is None:
            continue
        refuse_as_key(name, f"{line.place}: sample")
        if name in found:
            raise UserError(f"{file}: names a sample twice: {name!r}, in lines {found[name]} and {number}; remove one")
        found[name] = number
    if not found:
        raise UserError(f"{file}: names no sample; expected one a line")
    return found


class _Line(NamedTuple):
    text: str
    place: str


def _contents(file: Path) -> list[str]:
    if not stat.S_ISREG(file.stat().st_mode):
        # A pipe would be waited for.
        raise ValueError("it is no regular file; expected text with one sample a line")
    content = file.read_bytes()
    advice = "expected text with one sample a line; save it as UTF-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError(f"it is UTF-16 or no text; {advice}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\n|\r", content[: error.start])) + 1
        raise ValueError(f"line {line} is not UTF-8; {advice}") from error
    return re.split(r"\r\n|\n|\r", text)


def _name(line: _Line, reading: ListReading) -> str | None:
    """Return the name that a line means; None: it is a comment."""
    for columns in _columns(line.text):
        names = _meanings(columns[0], reading.image, reading.roots)
        name = next((name for name in names if name in reading.known), None)
        if name is not None:
            if len(columns) > 1:
                _refuse_other_label(columns, name, reading, line)
            return name
    return None if line.text.startswith("#") else _absent_name(line, reading)


def _columns(text: str) -> Iterator[list[str]]:
    """Yield what the columns of a line may be: the whole line first, for a name may hold blanks and commas."""
    yield [text]
    without_comment = text if text.startswith("#") else re.split(r"\s#", text)[0].rstrip()
    for separator in SEPARATORS:
        columns = [column.strip().strip("\"'") for column in re.split(separator, without_comment)]
        if columns[0] not in ("", text):
            yield [column for column in columns if column]


def _meanings(text: str, pattern: FilePattern, roots: Sequence[str]) -> list[str]:
    """Return the names that a word of a list may stand for: as it is first, then without what the pattern adds."""
    path = text.replace("\\", "/")  # as Windows writes it
    path = _normal(_below(path, roots) if path.startswith("/") else path)
    folders = pattern.folder.split("/")
    starts = ["/".join(folders[i:]) + pattern.before for i in range(len(folders))]
    names = [_normal(text)] if not text.startswith("/") else []
    for inner in [path, *(path[len(start) :] for start in starts if start and path.startswith(start))]:
        name = pattern.name_in(pattern.before + inner)
        names += [inner] if name is None else [inner, name]
    return list(dict.fromkeys(names))


def _normal(path: str) -> str:
    """Return a path so that `a//b` and `./a/b` are `a/b`; `..` stays."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _below(path: str, roots: Sequence[str]) -> str:
    """Return a path without a beginning that is the data set's folder, or without its first `/`."""
    return next((path[len(root) :] for root in roots if path.startswith(root)), path.lstrip("/"))


def _refuse_other_label(columns: Sequence[str], name: str, reading: ListReading, line: _Line) -> None:
    """Refuse a second column that belongs to another sample, or a name with blanks that was cut into columns."""
    text = columns[1]
    if reading.label is not None:
        if name not in _meanings(text, reading.label, reading.roots):
            raise UserError(
                f"{line.place}: {shortened(line.text)}: the second column is not the label of sample {name!r}; the "
                f"description's pattern gives {reading.label.file_of(name)}"
            )
    elif is_picture(text) and not is_picture(columns[0]) and not _is_named_after(text, name):
        raise UserError(
            f"{line.place}: {shortened(line.text)}: no sample has that name, and {text!r} does not look like a label "
            f"of sample {name!r}; correct or remove the line"
        )


def _is_named_after(file: str, name: str) -> bool:
    """Say whether a file is named after a sample, as labels are, where no pattern says how."""
    return re.search(rf"(?<![^\W_]){re.escape(name.rpartition('/')[2])}(?![^\W_])", file) is not None


def _absent_name(line: _Line, reading: ListReading) -> str:
    """Return the name that a line means whose sample is not there; a path elsewhere is refused."""
    *_, columns = _columns(line.text)
    word = next((word for word in (columns[0], line.text) if is_picture(word)), line.text)
    names = _meanings(word, reading.image, reading.roots)
    if ".." in word.replace("\\", "/").split("/") or (word.startswith("/") and len(names) == 1):
        raise UserError(f"{line.place}: {shortened(line.text)} leads out of the data set's folder")
    return names[-1]
