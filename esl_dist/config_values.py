"""Values from outside → the types that a dataclass's fields declare, held to their bounds; and both in words.

One conversion serves a number, a list and a mapping of dataclasses, whether YAML or JSON gave it.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import GrammarParseError

from esl_dist.environment import NO, YES
from esl_dist.errors import UserError
from esl_dist.files import LONGEST_PATH, as_given, problem_of_text, shortened
from esl_dist.urls import is_url
from esl_dist.yaml_text import Unquoted, Values

MOST_BITS = 1023
"""Of a whole number that a float can stand for."""

LEADING_ZERO = re.compile("[-+]?0[0-9]")
"""How a number begins that YAML, as others read it, takes for one in base 8."""

TRUTH = dict.fromkeys(YES, True) | dict.fromkeys(NO, False)

COMMAND_LINE = "command line"
EXPECTED_REFERENCE = "expected such as ${steps} or ${oc.env:VARIABLE}"


class Bound(NamedTuple):
    """What the values of a type are held to, as in `Annotated[int, at_least(1)]`.

    Attributes:
        words: what is expected.
        holds: whether a value, or one of a list, is that.
        is_of_list: whether it is asked of a list as a whole.
        choices: texts that hold, where they can be told.
    """

    words: str
    holds: Callable[[Any], bool]
    is_of_list: bool = False
    choices: tuple[str, ...] = ()


FOLDER = Bound("", lambda _: True)
"""Marks a path that can be no file's."""

FAR = Bound("", lambda _: True)
"""Marks a place that may be a URL."""

LOCAL = Bound("a place on this machine, not a URL", lambda value: not is_url(value))
"""Holds a path that is written to, or read by what knows no network."""


COMPARISONS = {"at_least": operator.ge, "more_than": operator.gt, "less_than": operator.lt, "at_most": operator.le}


def limits(**by_comparison: float) -> Bound:
    """Return the bound of numbers that are `at_least`, `more_than`, `less_than`, `at_most` some others."""
    # Numbers so that they can be read, and be given like that.
    words = [
        f"{name.replace('_', ' ')} {limit:{'_' if isinstance(limit, int) else 'g'}}"
        for name, limit in by_comparison.items()
    ]
    compared = [(COMPARISONS[name], limit) for name, limit in by_comparison.items()]
    return Bound(", ".join(words), lambda value: all(holds(value, limit) for holds, limit in compared))


def one_of(*choices: str) -> Bound:
    """Return the bound of texts that are chosen from a few."""
    return Bound(f"one of {', '.join(choices)}", lambda value: value in choices, choices=choices)


def two_values(words: str = "2 values") -> Bound:
    """Return the bound of pairs."""
    return Bound(words, lambda values: len(values) == 2, is_of_list=True)


EXPECTED: dict[Any, str] = {
    int: "int, such as 20",
    float: "float, such as 0.5 or 1e-4",
    bool: "bool: true or false",
    list[int]: "list[int], such as [640,480]",
    list[float]: "list[float], such as [0.5,0.5]",
    list[str]: "list[str], such as ['a', 'b']",
    list[Any]: "a list, such as [0, 1]",
    dict[str, Any]: "a mapping, `name: …` on a line each",
}
"""How a type is said to people. Others go by their names; a dataclass may say it in a class variable `EXPECTED`."""


class Setting(NamedTuple):
    """A field of a configuration: the dataclass and its name there, its type, bounds and default."""

    owner: type
    name: str
    kind: Any
    bounds: tuple[Bound, ...]
    default: Any


# A start asks for them some hundred times, and Python would make them of their texts each time.
_types_of = cache(get_type_hints)
_annotated_types_of = cache(partial(get_type_hints, include_extras=True))


def settings_of(schema: Any) -> dict[str, Setting]:
    """Return every setting of a configuration, or of a class of them, by its dotted key, in the order of definition."""
    config = schema() if isinstance(schema, type) else schema
    owner: Any = type(config)
    kinds, annotated = _types_of(owner), _annotated_types_of(owner)
    found: dict[str, Setting] = {}
    for name, default in ((item.name, getattr(config, item.name)) for item in fields(config)):
        if is_dataclass(default):
            found |= {f"{name}.{key}": setting for key, setting in settings_of(default).items()}
        else:
            parts = (annotated[name], *get_args(annotated[name]))
            bounds = next((part.__metadata__ for part in parts if hasattr(part, "__metadata__")), ())
            found[name] = Setting(owner, name, kinds[name], bounds, default)
    return found


def fill(config: Any, values: Mapping[Any, Values], origin: str, outer: str = "") -> Iterator[str]:
    """Put values in the place of a configuration's defaults, and yield the dotted keys of the settings they are of.

    Args:
        config: a dataclass; what it has as fields are groups of settings.
        values: names → values; those of a group are a mapping.
        origin: who gave them; a message begins with it.
        outer: what stands before the keys in a message, such as `optimizer.`.

    Raises:
        UserError: an unknown setting, a value of another type, or a single one for a group of settings.
    """
    owner: Any = type(config)
    kinds = _types_of(owner)
    for name, value in values.items():
        key = f"{outer}{name}"
        if name not in kinds:
            raise UserError(f"{origin}: {_unknown(name, type(config), outer)}")
        if not is_dataclass(kinds[name]):
            setattr(config, name, converted(value, kinds[name], origin, key))
            yield name
        elif isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in fill(getattr(config, name), value, origin, f"{key}."))
        else:
            example = f"{key}.{next(iter(settings_of(kinds[name])))}=…"
            raise UserError(f"{place(origin, key)}: a group of settings, not one; expected such as {example}")


def _unknown(name: str, schema: type, outer: str) -> str:
    keys = list(settings_of(schema))
    groups = {".".join(parts[:depth]) for parts in (key.split(".") for key in keys) for depth in range(1, len(parts))}
    known = [*sorted(groups), *keys]
    if name in known:
        return f"unknown setting {name!r}; in a file it is written without dots, below {name.split('.')[0]!r}"
    beside = [key for key in known if "." not in key]
    near = difflib.get_close_matches(name, beside, 1, 0.5) or difflib.get_close_matches(name, known, 1, 0.3) or keys
    return f"unknown setting {shortened(f'{outer}{name}')}; the nearest known one is {f'{outer}{near[0]}'!r}"


def place(origin: str, key: str) -> str:
    """Return where a value was given: who gave it and the key, which a word of the command line says itself."""
    return origin if origin.startswith(f"{COMMAND_LINE}: {key}=") else f"{origin}: {key}"


def converted(value: Values, kind: Any, origin: str, key: str) -> Any:
    """Return a value as a field of type `kind` holds it; a text is what was written: 0001 stays 0001.

    Args:
        value: as YAML (`yaml_text.values_of`) or JSON gives it; with a reference in it, it is returned as it is.
        kind: int, float, bool, str, Any, a dataclass, a list or mapping of them, or any of these `| None`.
        origin: who gave it, and `key` where; a message begins with them.

    Raises:
        UserError: a value of another type, or a reference that is none.
    """
    single, members = _without_none(kind), get_args(_without_none(kind))
    if (value is None and single is not kind) or has_reference(value, origin):
        return natural(value)
    if value == MISSING:
        raise UserError(f"{place(origin, key)}: {MISSING} stands for no value; give one, or leave the setting out")
    if get_origin(single) is list and isinstance(value, list):
        return [converted(member, members[0], origin, f"{key}[{number}]") for number, member in enumerate(value)]
    if get_origin(single) is dict and isinstance(value, dict):
        return {str(name): converted(inner, members[1], origin, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(single, type) and is_dataclass(single) and isinstance(value, dict):
        config = single()
        list(fill(config, value, origin, f"{key}."))
        return config
    try:
        return _READERS[single](value)
    except (KeyError, ValueError):
        # What was written without quotation marks is shown without.
        given = as_given(value) if isinstance(value, Unquoted) else shortened(natural(value))
        given = "nothing (null)" if value is None else given
        raise UserError(f"{place(origin, key)}: expected {_expected(kind)}, got {given}") from None


def has_reference(value: Values, origin: str) -> bool:
    """Say whether a value, or one in it, names another setting or a variable, so that it is known only later.

    Raises:
        UserError: it begins a reference that has no end; the message begins with `origin`.
    """
    if isinstance(value, dict | list):
        return any(has_reference(inner, origin) for inner in (value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str) or "${" not in value:
        return False
    try:
        OmegaConf.create([str(value)])
    except GrammarParseError as error:
        raise UserError(f"{origin}: cannot be read: ${{ begins a reference, {EXPECTED_REFERENCE}") from error
    return True


def _without_none(kind: Any) -> Any:
    parts = get_args(kind)
    return next(part for part in parts if part is not NoneType) if NoneType in parts else kind


def type_name(kind: Any) -> str:
    """Return a type as people read it, such as `list[int] or null`."""
    single = _without_none(kind)
    return f"{single if get_args(single) else single.__name__}{'' if single is kind else ' or null'}"


def _expected(kind: Any) -> str:
    single = _without_none(kind)
    words = EXPECTED.get(dict[str, Any] if get_origin(single) is dict else single) or getattr(single, "EXPECTED", None)
    return type_name(kind) if words is None else f"{words}{'' if single is kind else ' or null'}"


def _numeral(value: Values) -> str:
    """Return the text of a number; Python would take digits of any script, and blanks around them, too."""
    text = str(value)
    other_bases = "[-+]?0o" if isinstance(value, Unquoted) else "[-+]?0[box]"
    if not text.isascii() or text != text.strip() or re.match(other_bases, text, re.IGNORECASE):
        raise ValueError(value)
    return text


def _whole(value: Values) -> int:
    # As Python writes it, which everybody reads the same: not 010 or 1:30, which YAML takes for 8 and 90.
    number = int(_numeral(value), 0)
    if number.bit_length() > MOST_BITS:
        raise ValueError(value)
    return number


def _number(value: Values) -> float:
    with suppress(ValueError):
        return float(_whole(value))
    if not isinstance(value, str | float) or LEADING_ZERO.match(str(value)):
        raise ValueError(value)
    # YAML writes .inf and .nan.
    return float(re.sub(r"\.(?=inf|nan)", "", _numeral(value).lower()))


def _text(value: Values) -> str:
    if value is None or isinstance(value, list | dict):
        raise ValueError(value)
    return str(value)


def natural(value: Values) -> Any:
    """Return a value with its whole numbers, which are text in YAML, as numbers."""
    if isinstance(value, dict):
        return {str(name): natural(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [natural(inner) for inner in value]
    if isinstance(value, Unquoted):
        with suppress(ValueError):
            return _whole(value)
    return str(value) if isinstance(value, str) else value


_READERS: dict[Any, Callable[[Values], Any]] = {
    int: _whole,
    float: _number,
    bool: lambda value: TRUTH[str(value).lower()],
    str: _text,
    Any: natural,
}


def problem_of_bounds(value: Any, bounds: Sequence[Bound]) -> str | None:
    """Say what is wrong with a value of the right type, or with one of its list; None: nothing."""
    members = [] if value is None else value if isinstance(value, list) else [value]
    for member in members:
        if isinstance(member, str) and (problem := problem_of_text(member, LONGEST_PATH)) is not None:
            return problem
        if isinstance(member, float) and not math.isfinite(member):
            return "expected a finite number"
    for bound in bounds:
        if not all(map(bound.holds, [members] if bound.is_of_list and value is not None else members)):
            return f"expected {bound.words}"
    return None


def described_bounds(bounds: Sequence[Bound]) -> str:
    """Return the bounds as a sentence for the reference; empty where there are none."""
    sentence = ", ".join(bound.words for bound in bounds if bound.words)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""
