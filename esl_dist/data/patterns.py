"""What a pattern of files and a pattern of names take: pure functions of names, before any disk is asked.

Names are compared as people see them: in the Unicode form NFC, whatever form a disk or a list holds, and with an
extension in small letters or capitals.
"""

import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".avif", ".heic", ".heif"),
)
"""Extensions of pictures, for which `.*` stands; packing says which of their formats it can read."""

ANY_PICTURE = ".*"
ANY_DEPTH = "**"


def composed(text: str) -> str:
    """Return a name in the Unicode form NFC: macOS writes `é` as two characters, other systems as one."""
    return unicodedata.normalize("NFC", text)


def is_picture(path: str) -> bool:
    """Say whether a file is named like a picture."""
    return posixpath.splitext(path)[1].lower() in EXTENSIONS


@dataclass(frozen=True)
class FilePattern:
    """A pattern of files, cut where a sample's name stands: folder + before + name + after + extension.

    `folder` ends with `/` or is "", the root; `after` may hold folders; the extension `.*` is any picture's, "" none.
    """

    folder: str
    before: str
    after: str
    extension: str

    @classmethod
    def cut(cls, text: str) -> "FilePattern":
        """Cut a pattern that holds `{name}` once."""
        start, end = composed(posixpath.normpath(text)).split("{name}")
        folder, slash, before = start.rpartition("/")
        after, extension = posixpath.splitext("x" + end)
        return cls(folder + slash, before, after[1:], extension)

    def __str__(self) -> str:
        """Return the pattern as a description writes it."""
        return self.file_of("{name}")

    def file_of(self, name: str) -> str:
        """Return the path of a sample's file below the root."""
        return f"{self.folder}{self.before}{name}{self.after}{self.extension}"

    def first_file_of(self, name: str) -> str:
        """Return that path with the first of the extensions that it may have."""
        extension = EXTENSIONS[0] if self.extension == ANY_PICTURE else self.extension
        return f"{self.folder}{self.before}{name}{self.after}{extension}"

    def name_in(self, path: str, other_extension: bool = False) -> str | None:
        """Return the name in the path (NFC) of a file below `folder`; None: the pattern does not take that file.

        With `other_extension` it is the pictures that are looked for whose extension alone is not the pattern's.
        """
        extension = posixpath.splitext(path)[1].lower() if self.extension else ""
        taken = extension in EXTENSIONS if self.extension == ANY_PICTURE else extension == self.extension.lower()
        if other_extension:
            taken = not taken and extension in EXTENSIONS
        start, end = len(self.before), len(path) - len(extension) - len(self.after)
        fits = taken and start < end and path.startswith(self.before) and path[end:].startswith(self.after)
        return path[start:end] if fits else None


@dataclass(frozen=True)
class NamePattern:
    """A pattern of names as in a shell (`*`, `?`, `[abc]` within one folder), `**` for folders of any depth.

    As in a shell, what begins with a dot is hidden from a sign that stands at its beginning.
    """

    parts: tuple[str, ...]

    @classmethod
    def cut(cls, text: str) -> "NamePattern":
        """Cut a pattern at its folders; `**` at its end takes the files of any depth."""
        parts = [part for part in composed(text).split("/") if part not in ("", ".")]
        if parts[-1:] == [ANY_DEPTH]:
            parts.append("*")
        # A second one after the first takes nothing more, but would be tried at every depth.
        return cls(tuple(part for i, part in enumerate(parts) if part != ANY_DEPTH or parts[i - 1 : i] != [ANY_DEPTH]))

    def __str__(self) -> str:
        """Return the pattern as a description writes it."""
        return "/".join(self.parts)

    def depth(self) -> float:
        """Return how many folders deep it looks."""
        return float("inf") if ANY_DEPTH in self.parts else len(self.parts) - 1

    def deeper(self) -> "NamePattern":
        """Return the pattern that looks into all sub-folders too."""
        return NamePattern.cut("/".join((*self.parts[:-1], ANY_DEPTH, self.parts[-1])))

    def takes(self, name: str, within: bool = False, hidden_too: bool = False) -> bool:
        """Say whether the pattern takes a name (NFC).

        Args:
            name: the sample's name; its folders are parted by `/`.
            within: whether the name begins within a file's name, so that a dot at its beginning hides nothing.
            hidden_too: whether hidden names are taken like others.
        """
        parts = name.split("/")
        hides = [not hidden_too and part.startswith(".") and not (within and i == 0) for i, part in enumerate(parts)]
        return _taken(self.parts, list(zip(parts, hides, strict=True)))


def _taken(patterns: Sequence[str], parts: Sequence[tuple[str, bool]]) -> bool:
    if not patterns or not parts:
        return not patterns and not parts
    (part, hides), pattern = parts[0], patterns[0]
    if pattern == ANY_DEPTH:
        return _taken(patterns[1:], parts) or (not hides and _taken(patterns, parts[1:]))
    shown = not hides or pattern.startswith(".")
    return shown and fnmatchcase(part, pattern) and _taken(patterns[1:], parts[1:])
