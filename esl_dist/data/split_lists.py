"""A split's list file → names of samples, as the field writes such files.

A line holds a sample's name, or its picture's file as the lists of VOC or Cityscapes have it: with the extension, with
the pattern's folder or the end of it before the name, with a `/` at the beginning; then, after blanks, a tab or a
comma, its label's file. What follows is not read. Empty lines and those that begin with `#` are passed over.
"""

import re
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esl_dist.data.patterns import FilePattern, composed, is_picture
from esl_dist.errors import UserError
from esl_dist.files import refuse_as_key, shortened

SEPARATORS = (r"\t+", r"\s*[,;]\s*", r"\s+")


def read_list(file: Path, root: Path, patterns: Sequence[FilePattern], known: Container[str]) -> dict[str, int]:
    """Return the names (NFC) of a list and the number of each one's line; a name may be of a sample that is not there.

    Args:
        file: the list.
        root: the data set's folder, with which a line may begin.
        patterns: that of pictures and, where the split has labels, that of labels; a second column is held against it.
        known: the names of the samples that are there, in NFC.

    Raises:
        ValueError: the file is no text in UTF-8.
        UserError: a name given twice or that leads out of the data set's folder, a second column that is not the label
            of the first; file and line are named.
        OSError: the file cannot be read.
    """
    roots = [f"{composed(one.as_posix())}/" for one in (root.absolute(), root.resolve())]
    found: dict[str, int] = {}
    for number, content in enumerate(lines_of_list(file), 1):
        line = _Line(composed(content.strip()), f"{file}: line {number}", roots, patterns, known)
        name = line.name() if line.text else None
        if name is None:
            continue
        refuse_as_key(name, f"{line.place}: sample")
        if name in found:
            raise UserError(f"{file}: names a sample twice: {name!r}, in lines {found[name]} and {number}; remove one")
        found[name] = number
    if not found:
        raise UserError(f"{file}: names no sample; expected one a line")
    return found


def lines_of_list(file: Path) -> list[str]:
    """Return the lines of a list, whatever its line ends.

    Raises:
        ValueError: the file is no text in UTF-8.
        OSError: the file cannot be read.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        # A pipe would be waited for.
        raise ValueError("it is no regular file; expected text with one sample a line")
    content = file.read_bytes()
    advice = "expected text with one sample a line; save it as UTF-8"
    if b"\0" in content:
        raise ValueError(f"it is UTF-16 or no text; {advice}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\n|\r", content[: error.start])) + 1
        raise ValueError(f"line {line} is not UTF-8; {advice}") from error
    return re.split(r"\r\n|\n|\r", text)


@dataclass(frozen=True)
class _Line:
    """A line of a list (NFC), its place for messages, and what it is held against: see `read_list`."""

    text: str
    place: str
    roots: Sequence[str]
    patterns: Sequence[FilePattern]
    known: Container[str]

    def name(self) -> str | None:
        """Return the name that the line means; None: it is a comment."""
        columns = [self.text]
        for columns in self._columns():
            name = next((name for name in self._meanings(columns[0], self.patterns[0]) if name in self.known), None)
            if name is not None:
                if len(columns) > 1:
                    self._refuse_other_label(columns, name)
                return name
        return None if self.text.startswith("#") else self._absent_name(columns)

    def _columns(self) -> Iterator[list[str]]:
        """Yield what the columns may be: the whole line first, for a name may hold blanks and commas."""
        yield [self.text]
        without_comment = self.text if self.text.startswith("#") else re.split(r"\s#", self.text)[0].rstrip()
        for separator in SEPARATORS:
            columns = [column.strip().strip("\"'") for column in re.split(separator, without_comment)]
            if columns[0] not in ("", self.text):
                yield [column for column in columns if column]

    def _meanings(self, text: str, pattern: FilePattern) -> list[str]:
        """Return the names that a word may stand for: as it is first, then without what the pattern adds."""
        path = text.replace("\\", "/")  # as Windows writes it
        if path.startswith("/"):
            path = next((path[len(root) :] for root in self.roots if path.startswith(root)), path.lstrip("/"))
        path = _normal(path)
        folders = pattern.folder.split("/")
        starts = ["/".join(folders[i:]) + pattern.before for i in range(len(folders))]
        names = [_normal(text)] if not text.startswith("/") else []
        for inner in [path, *(path[len(start) :] for start in starts if start and path.startswith(start))]:
            name = pattern.name_in(pattern.before + inner)
            names += [inner] if name is None else [inner, name]
        return list(dict.fromkeys(names))

    def _refuse_other_label(self, columns: Sequence[str], name: str) -> None:
        """Refuse a second column that belongs to another sample, or a name with blanks that was cut into columns."""
        text = columns[1]
        for label in self.patterns[1:]:
            if name not in self._meanings(text, label):
                raise UserError(
                    f"{self.place}: {shortened(self.text)}: the second column is not the label of sample {name!r}; the "
                    f"description's pattern gives {label.file_of(name)}"
                )
            return
        # Where no pattern says how, labels are named after their samples.
        named_after = re.search(rf"(?<![^\W_]){re.escape(name.rpartition('/')[2])}(?![^\W_])", text)
        if is_picture(text) and not is_picture(columns[0]) and not named_after:
            raise UserError(
                f"{self.place}: {shortened(self.text)}: no sample has that name, and {text!r} does not look like a "
                f"label of sample {name!r}; correct or remove the line"
            )

    def _absent_name(self, columns: Sequence[str]) -> str:
        """Return the name that the line means whose sample is not there; a path elsewhere is refused."""
        word = next((word for word in (columns[0], self.text) if is_picture(word)), self.text)
        names = self._meanings(word, self.patterns[0])
        if ".." in word.replace("\\", "/").split("/") or (word.startswith("/") and len(names) == 1):
            raise UserError(f"{self.place}: {shortened(self.text)} leads out of the data set's folder")
        return names[-1]


def _normal(path: str) -> str:
    """Return a path so that `a//b` and `./a/b` are `a/b`; `..` stays."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))
