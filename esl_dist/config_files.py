"""YAML and `key=value` → a checked configuration; every mistake is one message with file, key and what to do.

The settings themselves are in `esl_dist.config`. OmegaConf merges them and resolves references (`${…}`); types and
bounds are held, and put into words, by `esl_dist.config_values`. A message blames the file or the word that gave the
value.
"""

import difflib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    KeyValidationError,
    OmegaConfBaseException,
    ValidationError,
)

from esl_dist.config_values import (
    described_bounds,
    is_reference,
    problem_of_bounds,
    problems_of_type,
    shortened,
    shown,
    typed,
)
from esl_dist.errors import UserError
from esl_dist.files import whole_file
from esl_dist.yaml_text import Values, plain, values_of

Config = TypeVar("Config")

LARGEST_FILE = 64 * 2**20
"""Bytes of a YAML file: more than the names of any data set's split take."""

COMMAND_LINE = "command line: "
QUOTES_AND_LISTS = "'\"[{"

EXPECTED_REFERENCE = "expected such as ${steps} or ${oc.env:VARIABLE}"
UNRESOLVED = {
    "Environment variable '(.*)' not found": "the variable {} is not set in the environment",
    "Interpolation key '(.*)' not found": "there is no setting {}",
    "Recursive interpolation": "it stands for itself",
}

EMPTY = "''"
"""The default, in a description, of a text that may be empty."""


def load_config(schema: type[Config], file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults of `schema`, a YAML file and `key=value` words, in this order, and check the result.

    Raises:
        UserError: an unreadable file, an unknown key, a wrong type, an impossible or a missing value.
    """
    merged, origins = OmegaConf.structured(schema), dict[str, str]()
    if file is not None:
        merged = _merge(merged, _read_values(file), str(file), origins)
    for word in overrides:
        merged = _merge(merged, _read_override(word, schema), _named(word), origins)
    config = _finished(merged, origin := str(file) if file is not None else "command line", origins)
    _refuse_files_for_folders(config, origin, origins)
    return cast(Config, config)


def _named(word: str) -> str:
    return f"{COMMAND_LINE}{shortened(word)}"


def _refuse_out_of_bounds(config: Any, kinds: Mapping[str, str], origin: str, origins: Mapping[str, str]) -> None:
    """Hold every setting to the bounds in its description.

    Raises:
        UserError: a value outside its bounds; the message starts with who gave it: `origins` by key, or `origin`.
    """
    for key, value, bounds in _settings(config):
        problem = problem_of_bounds(value, bounds)
        if value == "" and kinds[key].startswith("str") and key not in _may_be_empty(cast(type, type(config))):
            problem = "an empty text; leave it out, or give . for the folder in which the program is started"
        if problem:
            given = shortened(value) if isinstance(value, str) and value.isprintable() else shown(value)
            raise UserError(f"{_blamed(key, origin, origins)}: {key}={given} is impossible: {problem}")


def _refuse_files_for_folders(config: Any, origin: str, origins: Mapping[str, str]) -> None:
    for key, value, bounds in _settings(config):
        if value and bounds.get("folder", False):
            there = next(path for path in (Path(value), *Path(value).parents, Path()) if os.path.lexists(path))
            if os.path.exists(there) and not os.path.isdir(there):
                raise UserError(
                    f"{_blamed(key, origin, origins)}: {key}={shortened(value)} is impossible: {there} is a file; "
                    "expected a folder"
                )


def save_config(config: Any, path: Path) -> None:
    """Write every setting of a configuration, defaults included, as YAML."""
    with whole_file(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def to_dictionary(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain dictionaries."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def from_dictionary(schema: type[Config], values: Any, origin: str) -> Config:
    """Read a configuration of `schema` back from nested dictionaries, as strictly as from a file.

    Raises:
        UserError: as `load_config`; the message starts with `origin`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected settings by name, got {values!r}")
    origins: dict[str, str] = {}
    if (reference := next(_references(values), None)) is not None:
        raise UserError(f"{origin}: {shown(reference)} is a reference; expected values, as it was saved with")
    return cast(Config, _finished(_merge(OmegaConf.structured(schema), values, origin, origins), origin, origins))


def _references(values: Any) -> Iterator[str]:
    """Yield what OmegaConf would resolve: only the user's own words and files may name variables."""
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _references(value)
    elif is_reference(values):
        yield values


def differing_keys(one: Any, other: Any) -> list[str]:
    """Return the dotted keys in which two configurations of one schema differ."""
    pairs = zip(_settings(one), _settings(other), strict=True)
    return [key for (key, value, _), (_, other_value, _) in pairs if value != other_value]


def describe(schema: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every setting of a program, in the order of their definition."""
    hints = get_type_hints(schema)
    template = OmegaConf.structured(schema)
    for item in fields(schema):
        kind = hints[item.name]
        if is_dataclass(kind):
            for key, type_name, default, meaning in describe(cast(type, kind)):
                if default == "required" and not OmegaConf.is_missing(template[item.name], key):
                    default = str(template[item.name][key]) or EMPTY
                yield f"{item.name}.{key}", type_name, default, meaning
            continue
        default = "required" if OmegaConf.is_missing(template, item.name) else str(template[item.name])
        meaning = f"{item.metadata['meaning']} {described_bounds(dict(item.metadata))}".rstrip()
        yield item.name, _type_name(kind), "null" if default == "None" else default, meaning


def read_yaml(file: Path) -> DictConfig:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, is no YAML or holds something else.
    """
    return cast(DictConfig, _created(plain(_read_values(file)), str(file)))


def _read_values(file: Path) -> dict[str, Values]:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            # Every process of a job reads it, and what it reads from a pipe or a terminal is gone for the others.
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UserError(f"{file}: {what}; expected a YAML file with settings")
        if status.st_size > LARGEST_FILE:
            raise UserError(f"{file}: {status.st_size} bytes; expected a YAML file of at most {LARGEST_FILE}")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file}: no such configuration file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read as YAML: it is not UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{shown(str(file))}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{shown(str(file))} cannot be the name of a file ({error})") from error
    values = values_of(text, f"{file}:")
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{file}: expected settings of the form `key: value`")
    return values or {}


def _created(values: Any, origin: str) -> Any:
    try:
        return OmegaConf.create(values)
    except GrammarParseError as error:
        raise UserError(f"{origin}: cannot be read: ${{ begins a reference, {EXPECTED_REFERENCE}") from error
    except KeyValidationError as error:
        raise UserError(f"{origin}: a key is nothing (null) or a list; expected names of settings") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{origin}: cannot be read: {_first_line(error)}") from error


def _read_override(word: str, schema: type) -> dict[str, Values]:
    """Return what a word `key=value` says, as nested dictionaries."""
    key, _, text = word.partition("=")
    if not key or "=" not in word:
        raise UserError(f"command line: {word!r} is not of the form key=value")
    parts = key.split(".")
    if not all(part.strip() for part in parts):
        raise UserError(f"{COMMAND_LINE}{shortened(repr(word))} has an empty part before = or between dots")
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UserError(f"command line: {word!r} is not UTF-8; expected text, so rename what it names") from None
    value = _read_value(text, key, schema, f"{COMMAND_LINE}{shortened(repr(word))}")
    for part in reversed(parts):
        value = {part: value}
    return cast(dict[str, Values], value)


def _read_value(text: str, key: str, schema: type, origin: str) -> Values:
    is_text = _kinds(schema).get(key, "").startswith("str")
    if is_text and "#" in text and text[0] not in QUOTES_AND_LISTS:
        # For YAML a comment begins there.
        return text
    if not text and key in _may_be_empty(schema):
        return ""
    return values_of(text, origin)


def _merge(base: Any, addition: Any, origin: str, origins: dict[str, str]) -> Any:
    kinds = _kinds(cast(type, OmegaConf.get_type(base)))
    values = _typed(addition, kinds, origin)
    try:
        merged = OmegaConf.merge(base, _created(values, origin))
    except ConfigKeyError as error:
        raise UserError(f"{origin}: {_unknown_key(base, error)}") from error
    except (OmegaConfBaseException, TypeError) as error:
        key = str(getattr(error, "full_key", None) or "value")
        expected = f"expected {kinds[key]}: " if key in kinds else ""
        raise UserError(f"{_place(origin, key)}: {expected}{_first_line(error)}") from error
    origins.update({key: origin for key in kinds if _is_given(key.split("."), values)})
    return merged


def _place(origin: str, key: str) -> str:
    """Return where a value was given: the origin and the key, which a word of the command line says itself."""
    return origin if origin.startswith(f"{COMMAND_LINE}{key}=") else f"{origin}: {key}"


def _is_given(parts: list[str], values: Any) -> bool:
    for part in parts:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _typed(values: Any, kinds: Mapping[str, str], origin: str, prefix: str = "") -> dict[str, Any]:
    """Return values of the types that settings want, those of unknown settings as they are.

    Raises:
        UserError: a value of another type, a single value for a group of settings, or a group for a single one.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{plain(name)}"
        inner = next((known for known in kinds if known.startswith(f"{key}.")), None)
        if inner is not None and not isinstance(value, dict):
            raise UserError(f"{_place(origin, key)}: a group of settings, not one; expected such as {inner}=…")
        for place, problem in () if inner is not None else problems_of_type(value, kinds.get(key, "")):
            raise UserError(f"{_place(origin, f'{key}{place}')}: {problem}")
        found[plain(name)] = (
            typed(value, kinds.get(key, "")) if inner is None else _typed(value, kinds, origin, f"{key}.")
        )
    return found


def _finished(merged: Any, origin: str, origins: Mapping[str, str]) -> Any:
    kinds = _kinds(cast(type, OmegaConf.get_type(merged)))
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{origin}: no value for {', '.join(missing)}; give it in the file or as {missing[0]}=…")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "value")
        raise _unfit(error, kinds, _blamed(key, origin, origins)) from error
    _refuse_out_of_bounds(config, kinds, origin, origins)
    return config


def _blamed(key: str, origin: str, origins: Mapping[str, str]) -> str:
    """Return who gave a value, the file or the command line, whose word is in the message anyway."""
    given = origins.get(key, origin)
    return COMMAND_LINE.rstrip(": ") if given.startswith(COMMAND_LINE) else given


def _unfit(error: Exception, kinds: Mapping[str, str], origin: str) -> UserError:
    """Return the message for a value that only OmegaConf could find wrong: what a reference stands for."""
    key = str(getattr(error, "full_key", None) or "value")
    if isinstance(error, InterpolationResolutionError) and not isinstance(error, ValidationError):
        return UserError(f"{origin}: {key}: its reference cannot be resolved: {_unresolved(str(error))}")
    # OmegaConf's words would be about types of its own.
    expected = f"expected {kinds[key]}, which it does not give" if key in kinds else _first_line(error)
    return UserError(f"{origin}: {key}: its reference: {expected}")


def _unresolved(text: str) -> str:
    """Say in words of people what OmegaConf says of a reference."""
    for pattern, words in UNRESOLVED.items():
        if (found := re.search(pattern, text)) is not None:
            return words.format(shortened("".join(found.groups())))
    return EXPECTED_REFERENCE


@cache
def _kinds(schema: type) -> dict[str, str]:
    return {key: kind for key, kind, _, _ in describe(schema)}


@cache
def _may_be_empty(schema: type) -> frozenset[str]:
    return frozenset(key for key, _, default, _ in describe(schema) if default == EMPTY)


def _unknown_key(base: DictConfig, error: ConfigKeyError) -> str:
    full_key = str(error.full_key)
    group, _, last = full_key.rpartition(".")
    siblings = [item.name for item in fields(error.object_type)] if is_dataclass(error.object_type) else []
    nearest = [f"{group}.{name}".lstrip(".") for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)]
    known = [key for key in _known_keys(base) if not full_key.startswith(f"{key}.")]
    if full_key in known:
        return f"unknown setting {full_key!r}; in a file it is written without dots, below {full_key.split('.')[0]!r}"
    nearest = nearest or difflib.get_close_matches(full_key, known, n=1, cutoff=0.4)
    nearest = nearest or difflib.get_close_matches(last, known, n=1, cutoff=0.3) or known[:1]
    return f"unknown setting {shortened(full_key)!r}; the nearest known one is {nearest[0]!r}"


def _known_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        full_key = f"{prefix}{key}"
        yield full_key
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _known_keys(node[key], f"{full_key}.")


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, dict(item.metadata)


def _type_name(kind: Any) -> str:
    names = [getattr(part, "__name__", str(part)) if not get_args(part) else str(part) for part in get_args(kind)]
    if get_args(kind) and type(None) in get_args(kind):
        return " or ".join("null" if name == "NoneType" else name for name in names)
    return str(kind) if get_args(kind) else str(kind.__name__)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
