"""Values that were read from a file: asked for by type and range, and refused with their place in the file.

Every format of this project is read through here, so that whatever does not fit is one message with file and key. A
format is a dataclass whose types say what may stand under its keys, and `read` holds a file to it:

    @dataclass(frozen=True)
    class Entry:
        key: SampleKey
        count: Annotated[int, whole_number(1, 100)]
        shares: dict[str, Share | None] = field(default_factory=dict)

    entry = read(read_content(file, "make it again"), Entry)
"""

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from esl_dist.errors import UserError
from esl_dist.files import read_json, refuse_as_key, refuse_as_label, refuse_as_name, shortened

LARGEST_WHOLE = 2**63 - 1
"""What other programs, and files, hold as a whole number."""

SHOWN_ENTRIES = 4
"""Of how many values a list may be that a message shows."""

SHA256 = "[0-9a-f]{64}"

T = TypeVar("T")


class OtherVersionError(UserError):
    """A file of a version of the program whose format is another."""


@dataclass(slots=True)
class Content:
    """A value and where it stands; its methods return it as what they are named after, or refuse it.

    Attributes:
        value: as JSON or torch's restricted unpickler gives it.
        file: where it was read: a path, or a URL as text.
        remedy: what the user may do if it does not fit.
        outer: what it lies in; None for the whole file.
        key: its place there, a name or, in a list, a number; None: it is itself a key.
    """

    value: Any
    file: Path | str
    remedy: str
    outer: "Content | None" = None
    key: str | int | None = ""

    def place(self) -> str:
        """Return file and dotted key: `index.json: shards[3].samples[0].key`."""
        if self.outer is None:
            return str(self.file)
        outer, key = self.outer.place(), self.key
        if key is None:
            return f"{outer}: key"
        is_plain = isinstance(key, str) and key.isprintable()
        step = f"[{key}]" if isinstance(key, int) else f".{key if is_plain else shortened(key)}"
        return f"{outer}{step}" if self.outer.outer else f"{outer}: {step.removeprefix('.')}"

    def refuse(self, expected: str) -> NoReturn:
        """Raise the one message: where, what was expected, what there is, what to do."""
        raise UserError(f"{self.place()}: expected {expected}, got {_described(self.value)}; {self.remedy}")

    def inner(self, key: str | int | None, value: Any) -> "Content":
        """Return a value that lies in this one."""
        return Content(value, self.file, self.remedy, self, key)

    def pairs(self) -> Iterator[tuple["Content", "Content"]]:
        """Yield keys and values of a mapping."""
        if not isinstance(self.value, dict):
            self.refuse("a mapping")
        for key, value in self.value.items():
            yield self.inner(None, key), self.inner(key, value)

    def items(self) -> list[tuple[str, "Content"]]:
        """Return keys and values of a mapping whose keys are text that can be printed."""
        return [(read_label(key), value) for key, value in self.pairs()]

    def mapping(self) -> dict[str, Any]:
        """Return a mapping whose keys are text that can be printed."""
        return {key: value.value for key, value in self.items()}

    def entries(self) -> list["Content"]:
        """Return the values of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return [self.inner(number, value) for number, value in enumerate(self.value)]

    def at(self, key: str) -> "Content":
        """Return what a mapping has under a key that it must have."""
        if not isinstance(self.value, dict):
            self.refuse("a mapping")
        if key not in self.value:
            raise UserError(f"{self.place()}: no {key!r}; {self.remedy}")
        return self.inner(key, self.value[key])

    def get(self, key: str) -> "Content | None":
        """Return what a mapping has under a key that it may do without."""
        return self.at(key) if isinstance(self.value, dict) and key in self.value else None

    def whole_number(self, minimum: int = 0, maximum: int = LARGEST_WHOLE) -> int:
        """Return a whole number in [minimum, maximum]; no truth value, no fraction."""
        if type(self.value) is not int or not minimum <= self.value <= maximum:
            self.refuse(f"a whole number from {minimum} to {maximum}")
        return self.value

    def whole_numbers(self, count: int, minimum: int = 0, maximum: int = LARGEST_WHOLE) -> list[int]:
        """Return a list of `count` whole numbers in [minimum, maximum]."""
        values = self.value
        if not isinstance(values, list) or len(values) != count:
            self.refuse(f"a list of {count} whole numbers")
        # At once, for an index has many; one by one only to name the first that does not fit.
        if not all(type(value) is int and minimum <= value <= maximum for value in values):
            return [entry.whole_number(minimum, maximum) for entry in self.entries()]
        return values

    def number(self, minimum: float = -math.inf, maximum: float = math.inf) -> float:
        """Return a finite number in [minimum, maximum]."""
        held = type(self.value) in (int, float) and abs(self.value) <= sys.float_info.max
        if not held or not minimum <= self.value <= maximum:
            self.refuse("a finite number" if minimum == -math.inf else f"a number from {minimum:g} to {maximum:g}")
        return self.value  # type: ignore[no-any-return]

    def truth(self) -> bool:
        """Return a truth value."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def text(self) -> str:
        """Return text, whatever it says."""
        if not isinstance(self.value, str):
            self.refuse("text")
        return self.value

    def version_of(self, form: str, versions: Sequence[int], or_else: str | None = None) -> int:
        """Return the version of a file that has to be of the format `form`, in one of `versions`.

        Args:
            form: its name.
            versions: those that are read.
            or_else: what else can be done about another version; None: the remedy of all that does not fit.

        Raises:
            UserError: the format is another, or no version is named.
            OtherVersionError: the version is another.
        """
        if not isinstance(self.value, dict) or self.value.get("format") != form:
            raise UserError(f"{self.place()}: expected the format {form!r}; {self.remedy}")
        version = self.at("format_version").whole_number()
        if version not in versions:
            raise OtherVersionError(
                f"{self.place()}: format version {version}, this program reads {' and '.join(map(str, versions))}; use "
                f"the version of the program that wrote it, or {or_else or self.remedy}"
            )
        return version


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list | tuple) and (len(value) > SHOWN_ENTRIES or any(not _is_plain(one) for one in value)):
        return f"a list of {len(value)}"
    return shortened(value) if _is_plain(value) or isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def read_content(file: Path, remedy: str) -> Content:
    """Read a JSON file; what is damaged or does not fit in it is refused with `remedy`.

    Raises:
        UserError: as `files.read_json`.
    """
    return Content(read_json(file, remedy), file, remedy)


Reader = Callable[[Content], Any]
"""What a value has to be: returns it as that, or refuses it."""


def whole_number(minimum: int = 0, maximum: int = LARGEST_WHOLE) -> Reader:
    """Read a whole number in [minimum, maximum]."""
    return lambda content: content.whole_number(minimum, maximum)


def one_of(*choices: str) -> Reader:
    """Read one of some texts."""
    return matching("|".join(map(re.escape, choices)), f"one of {', '.join(choices)}")


def matching(pattern: str, expected: str) -> Reader:
    """Read a text that matches a pattern as a whole."""
    matches = re.compile(pattern).fullmatch

    def read_text(content: Content) -> str:
        if not isinstance(content.value, str) or not matches(content.value):
            content.refuse(expected)
        return content.value

    return read_text


def _named(refuse: Callable[[str, str], None]) -> Reader:
    def read_text(content: Content) -> str:
        text = content.text()
        try:
            refuse(text, "")
        except UserError as error:
            raise UserError(f"{content.place()}{error}; {content.remedy}") from None
        return text

    return read_text


read_label, read_name, read_key = map(_named, (refuse_as_label, refuse_as_name, refuse_as_key))
read_sha256 = matching(SHA256, "a SHA-256, 64 hexadecimal digits")

Label = Annotated[str, read_label]
"""What something is called (`files.refuse_as_label`)."""
Name = Annotated[str, read_name]
"""What may be part of a path (`files.refuse_as_name`)."""
SampleKey = Annotated[str, read_key]
"""A sample's key, which may hold folders (`files.refuse_as_key`)."""
Sha256 = Annotated[str, read_sha256]
Share = Annotated[float, lambda content: content.number(0, 1)]


def read(content: Content, kind: type[T]) -> T:
    """Return a value as what a type says.

    Args:
        content: the value. Keys that a dataclass does not have are passed over, for later versions may write them.
        kind: `int` (from 0), `float`, `bool`, `str`, `Any`; `list[X]`, `tuple[X, ...]`, `dict[str, X]`, `X | None`;
            a dataclass, whose fields with a default may be missing, and whose field with the metadata `key` stands
            under that one; or `Annotated[X, reader]`, which reads with a function of the content, keys too.

    Raises:
        UserError: a key is missing, or a value is another one; the message names its place.
    """
    value: T = _reader(cast(Any, kind))(content)
    return value


_PLAIN: dict[Any, Reader] = {
    int: Content.whole_number,
    float: Content.number,
    bool: Content.truth,
    str: Content.text,
    Any: lambda content: content.value,
}


@cache
def _reader(kind: Any) -> Reader:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return parts[1]  # type: ignore[no-any-return]
    if origin in (Union, UnionType):
        inner = _reader(parts[0])
        return lambda content: None if content.value is None else inner(content)
    if origin in (list, tuple):
        entry = _reader(parts[0])
        return lambda content: origin(map(entry, content.entries()))
    if origin is dict:
        key, value = _reader(Label if parts[0] is str else parts[0]), _reader(parts[1])
        return lambda content: {key(name): value(one) for name, one in content.pairs()}
    return _PLAIN[kind] if kind in _PLAIN else _record_reader(kind)


def _record_reader(kind: type) -> Reader:
    types = get_type_hints(kind, include_extras=True)
    readers = [(item, item.metadata.get("key", item.name), _reader(types[item.name])) for item in fields(kind)]

    def read_record(content: Content) -> Any:
        found = content.value if isinstance(content.value, dict) else {}
        return kind(
            **{
                item.name: reader(content.at(key))
                for item, key, reader in readers
                if key in found or item.default is item.default_factory is MISSING
            }
        )

    return read_record
