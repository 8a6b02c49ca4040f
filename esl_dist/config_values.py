"""Whether one value can be what a setting wants: its type, its bounds, and how both are said to people."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import MISSING

from esl_dist.errors import beginning
from esl_dist.yaml_text import Spelled, Values, plain

LONGEST_TEXT = 4096
"""Characters; Linux takes no longer path."""

SHOWN_CHARACTERS = 100

MOST_BITS = 1023
"""Of a whole number that a float can stand for."""

WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-f_]+|0b[01_]+)", re.IGNORECASE)
"""How YAML and people read the same whole number: not 010, which YAML takes for 8, nor 1:30, which it takes for 90."""
QUOTED_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,300})")
QUOTED_NUMBER = re.compile(r"[-+]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf)", re.IGNORECASE)
TRUTH = ("true", "false", "yes", "no", "on", "off", "y", "n", "0", "1")

EXPECTED = {
    "int": "int, such as 20",
    "float": "float, such as 0.5 or 1e-4",
    "bool": "bool: true or false",
    "list[int]": "list[int], such as [640,480]",
    "list[float]": "list[float], such as [0.5,0.5]",
    "list[str]": "list[str], such as ['a', 'b']",
    "list[typing.Any]": "a list, such as [0, 1]",
    "dict[str, typing.Any]": "a mapping, `name: …` on a line each",
}
"""How a type is said to people; others go by their names."""
ANY_MAPPING = "dict[str, typing.Any]"


def problems_of_type(value: Values, kind: str) -> Iterator[tuple[str, str]]:
    """Yield, for each value of a wrong type, its place ('' or '[1]' in a list) and what is wrong.

    Args:
        value: as read, with its spelling.
        kind: the setting's type as `config_files.describe` gives it, such as `list[int] or null`.
    """
    single, _, optional = kind.partition(" or ")
    if is_reference(value) or (value is None and optional):
        return
    if kind and value == MISSING:
        yield "", f"{MISSING} stands for no value; give one, or leave the setting out"
    elif single.startswith("list["):
        if isinstance(value, list):
            for number, member in enumerate(value):
                yield from ((f"[{number}]", problem) for _, problem in problems_of_type(member, single[5:-1]))
        else:
            yield "", f"expected {EXPECTED.get(single, single)}{optional and ' or null'}, got {_as_written(value)}"
    elif single.startswith("dict["):
        if not isinstance(value, dict):
            yield "", f"expected {EXPECTED[ANY_MAPPING]}, got {_as_written(value)}"
    elif single in _FITS and (isinstance(value, dict | list) or not _FITS[single](value)):
        yield "", f"expected {EXPECTED.get(single, single)}{optional and ' or null'}, got {_as_written(value)}"


def is_reference(value: Values) -> bool:
    """Say whether a value names another setting or a variable, so that its type is known only later."""
    return isinstance(value, str) and "${" in value


def typed(value: Values, kind: str) -> Any:
    """Return a value that fits `kind`; a text is what was written: 0001 stays 0001."""
    if isinstance(value, list):
        return [typed(member, kind.partition(" or ")[0][5:-1]) for member in value]
    return value.text if isinstance(value, Spelled) and kind.startswith("str") else plain(value)


def _as_written(value: Values) -> str:
    if isinstance(value, Spelled):
        return shortened(value.text)
    return "nothing (null)" if value is None else shown(plain(value))


def _is_whole(value: Values) -> bool:
    number = plain(value)
    if isinstance(number, str):
        return QUOTED_WHOLE.fullmatch(number) is not None
    if type(number) is not int or number.bit_length() > MOST_BITS:
        return False
    return not isinstance(value, Spelled) or WHOLE.fullmatch(value.text) is not None


def _is_number(value: Values) -> bool:
    number = plain(value)
    if isinstance(number, str):
        return QUOTED_NUMBER.fullmatch(number) is not None
    return isinstance(number, float) or _is_whole(value)


_FITS: dict[str, Callable[[Values], bool]] = {
    "int": _is_whole,
    "float": _is_number,
    "bool": lambda value: str(plain(value)).lower() in TRUTH,
    "str": lambda value: value is not None,
}


def problem_of_bounds(value: Any, bounds: dict[str, Any]) -> str | None:
    """Say what is wrong with a value of the right type; None if nothing is.

    Args:
        value: of the setting, or of a list's member.
        bounds: as given to `config.setting`.
    """
    if isinstance(value, list):
        problems = (problem_of_bounds(member, bounds) for member in value)
        return next((problem for problem in problems if problem), None) or _problem_of_list(value, bounds)
    if value is None or value == MISSING:
        return None
    if "choices" in bounds and value not in bounds["choices"]:
        return f"expected one of {', '.join(bounds['choices'])}"
    if isinstance(value, str):
        return _problem_of_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if "minimum" in bounds and value < bounds["minimum"]:
        return f"expected at least {_number(bounds['minimum'])}"
    if "above" in bounds and value <= bounds["above"]:
        return f"expected more than {_number(bounds['above'])}"
    if "below" in bounds and value >= bounds["below"]:
        return f"expected less than {_number(bounds['below'])}"
    if "maximum" in bounds and value > bounds["maximum"]:
        return f"expected at most {_number(bounds['maximum'])}"
    return None


def _problem_of_list(values: list[Any], bounds: dict[str, Any]) -> str | None:
    if len(values) != bounds.get("length", len(values)):
        return "expected [width, height]" if "product" in bounds else f"expected {bounds['length']} values"
    if "product" in bounds and math.prod(values) > bounds["product"]:
        return f"expected at most {_number(bounds['product'])} pixels"
    return None


def _problem_of_text(text: str) -> str | None:
    if len(text) > LONGEST_TEXT:
        return f"it has {len(text)} characters; expected at most {LONGEST_TEXT}"
    categories = {unicodedata.category(character) for character in text}
    if "Cc" in categories:
        return "it holds control characters; expected a text that can be printed"
    return "it is not UTF-8; rename what it names" if "Cs" in categories else None


def described_bounds(bounds: dict[str, Any]) -> str:
    """Return the bounds as a sentence for the reference; empty where there are none."""
    if "choices" in bounds:
        return f"One of {', '.join(bounds['choices'])}."
    words = {"minimum": "at least", "above": "more than", "below": "less than", "maximum": "at most"}
    parts = [f"{word} {_grouped(bounds[key])}" for key, word in words.items() if key in bounds]
    if "product" in bounds:
        parts.append(f"{_grouped(bounds['product'])} pixels together")
    sentence = ", ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}." if parts else ""


def shown(value: Any) -> str:
    """Return a value as Python writes it, shortened for a message."""
    try:
        return shortened(repr(value))
    except ValueError:
        # Python writes no number of more than 4300 digits.
        return "a number of very many digits"


def shortened(text: str) -> str:
    """Return the beginning of a text that is long, for a message."""
    return beginning(text, SHOWN_CHARACTERS)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _grouped(value: float) -> str:
    """Write a number so that it can be read, and be given like that."""
    return f"{value:_}" if isinstance(value, int) else _number(value)
