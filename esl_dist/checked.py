"""Values that were read from a file: asked for by type and range, and refused with their place in the file.

Every format of this project is read through here, so that whatever does not fit is one message with file and key.
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from esl_dist.errors import UserError
from esl_dist.files import read_json, refuse_as_key, refuse_as_label, refuse_as_name, shortened

LARGEST_WHOLE = 2**63 - 1
"""What other programs, and files, hold as a whole number."""

SHOWN_ENTRIES = 4
"""Of how many values a list may be that a message shows."""

SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(slots=True)
class Content:
    """A value and where it stands; its methods return it as what they are named after, or refuse it.

    Attributes:
        value: as JSON or torch's restricted unpickler gives it.
        file: where it was read.
        remedy: what the user may do if it does not fit.
        outer: what it lies in; None for the whole file.
        key: its place there, a name or, in a list, a number.
    """

    value: Any
    file: Path
    remedy: str
    outer: "Content | None" = None
    key: str | int = ""

    def place(self) -> str:
        """Return file and dotted key: `index.json: shards[3].samples[0].key`."""
        steps: list[str] = []
        here = self
        while here.outer is not None:
            name = here.key if isinstance(here.key, str) and here.key.isprintable() else shortened(here.key)
            steps.append(f"[{here.key}]" if isinstance(here.key, int) else f".{name}")
            here = here.outer
        return f"{self.file}: {''.join(reversed(steps)).lstrip('.')}" if steps else str(self.file)

    def refuse(self, expected: str) -> NoReturn:
        """Raise the one message: where, what was expected, what there is, what to do."""
        raise UserError(f"{self.place()}: expected {expected}, got {_described(self.value)}; {self.remedy}")

    def inner(self, key: str | int, value: Any) -> "Content":
        """Return a value that lies in this one."""
        return Content(value, self.file, self.remedy, self, key)

    def mapping(self) -> dict[str, Any]:
        """Return a mapping whose keys are text that can be printed."""
        if not isinstance(self.value, dict):
            self.refuse("a mapping")
        for key in self.value:
            if not isinstance(key, str):
                self.refuse("a mapping with names as keys")
            self._named(refuse_as_label, key, " key")
        return self.value

    def items(self) -> list[tuple[str, "Content"]]:
        """Return keys and values of a mapping."""
        return [(key, self.inner(key, value)) for key, value in self.mapping().items()]

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

    def label(self) -> str:
        """Return what something is called (`files.refuse_as_label`)."""
        return self._named(refuse_as_label, self.text())

    def name(self) -> str:
        """Return a name that may be part of a path (`files.refuse_as_name`)."""
        return self._named(refuse_as_name, self.text())

    def sample_key(self) -> str:
        """Return a sample's key, which may hold folders (`files.refuse_as_key`)."""
        return self._named(refuse_as_key, self.text())

    def sha256(self) -> str:
        """Return a SHA-256 as 64 hexadecimal digits."""
        if not isinstance(self.value, str) or not SHA256.fullmatch(self.value):
            self.refuse("a SHA-256, 64 hexadecimal digits")
        return self.value

    def _named(self, refuse: Callable[[str, str], None], text: str, what: str = "") -> str:
        try:
            refuse(text, what)
        except UserError as error:
            raise UserError(f"{self.place()}{':' if what else ''}{error}; {self.remedy}") from None
        return text


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list | tuple) and (len(value) > SHOWN_ENTRIES or any(not _is_plain(one) for one in value)):
        return f"a list of {len(value)}"
    return shortened(value) if _is_plain(value) or isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def read_content(file: Path, remedy: str) -> Content:
    """Read a JSON file; what does not fit in it is refused with `remedy`.

    Raises:
        UserError: as `files.read_json`.
    """
    return Content(read_json(file), file, remedy)
