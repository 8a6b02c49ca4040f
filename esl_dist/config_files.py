"""YAML and `key=value` → a checked configuration; every mistake is one message with file, key and what to do.

The settings themselves are in `esl_dist.config`; `esl_dist.config_values` converts and checks one value. OmegaConf
resolves references (`${…}`). A message blames the file or the word that gave the value.
"""

import ast
import glob
import inspect
import itertools
import os
import re
import stat
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esl_dist.config_values import (
    COMMAND_LINE,
    EXPECTED_REFERENCE,
    FAR,
    FOLDER,
    LOCAL,
    Setting,
    described_bounds,
    fill,
    has_reference,
    natural,
    problem_of_bounds,
    settings_of,
    type_name,
)
from esl_dist.errors import UserError
from esl_dist.files import as_given, shortened, whole_file
from esl_dist.urls import is_like_url, is_url, problem_of_url
from esl_dist.yaml_text import Values, values_of

Config = TypeVar("Config")

LARGEST_FILE = 64 * 2**20
"""Bytes of a YAML file: more than the names of any data set's split take."""

UNRESOLVED = {
    "Environment variable '(.*)' not found": "the variable {} is not set in the environment",
    "Interpolation key '(.*)' not found": "there is no setting {}",
    "Recursive interpolation": "it stands for itself",
}


def load_config(schema: type[Config], file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Put the values of a YAML file, then of `key=value` words, in place of the defaults of `schema`.

    Raises:
        UserError: an unreadable file, an unknown key, a wrong type, an impossible or a missing value.
    """
    config, givers = schema(), dict[str, str]()
    if file is not None:
        givers |= dict.fromkeys(fill(config, _read_mapping(file), str(file)), str(file))
    for word in overrides:
        given = fill(config, _read_override(word, schema), f"{COMMAND_LINE}: {as_given(word)}")
        # A message about what the value is repeats it, and needs not the word.
        givers |= dict.fromkeys(given, COMMAND_LINE)
    _finish(config, givers, COMMAND_LINE if file is None else str(file), is_here=True)
    return config


def from_dictionary(schema: type[Config], values: Any, origin: str) -> Config:
    """Read a configuration of `schema` back from nested dictionaries, as strictly as from a file.

    Raises:
        UserError: as `load_config`; the message starts with `origin`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected settings by name, got {values!r}")
    config = schema()
    for key in fill(config, values, origin):
        # Only the user's own words and files may name variables.
        if has_reference(value := attrgetter(key)(config), origin):
            raise UserError(f"{origin}: {shortened(value)} is a reference; expected values, as it was saved with")
    _finish(config, {}, origin, is_here=False)
    return config


def _finish(config: Any, givers: Mapping[str, str], origin: str, is_here: bool) -> None:
    """Resolve the references of a configuration, and hold it to its bounds; `is_here`: to this machine's files too.

    A message starts with who gave the value, or else with `origin`.
    """
    settings = settings_of(type(config))
    if missing := sorted(key for key in settings if attrgetter(key)(config) == MISSING):
        raise UserError(f"{origin}: no value for {', '.join(missing)}; give it in the file or as {missing[0]}=…")
    references = [key for key in givers if has_reference(attrgetter(key)(config), givers[key])]
    tree = OmegaConf.create(asdict(config)) if references else None
    for key in references:
        place = f"{givers[key]}: {key}: its reference"
        value = _resolved(tree, key, place)
        try:
            list(fill(config, _nested(key, value), givers[key]))
        except UserError:
            # The value may be a secret.
            raise UserError(f"{place}: expected {type_name(settings[key].kind)}, which it does not give") from None
    for key, setting in settings.items():
        value = attrgetter(key)(config)
        if (problem := _problem(value, setting, is_here)) is not None:
            raise UserError(f"{givers.get(key, origin)}: {key}={as_given(value)} is impossible: {problem}")


def _problem(value: Any, setting: Setting, is_here: bool) -> str | None:
    if value == "":
        empty = "an empty text; leave it out, or give . for the folder where the program starts"
        return None if setting.default == "" else empty
    problem = problem_of_bounds(value, setting.bounds)
    if problem is not None or value is None or not is_here:
        return problem
    if FAR in setting.bounds and (is_url(value) or (is_like_url(value) and not os.path.lexists(value))):
        return problem_of_url(value)
    if FOLDER not in setting.bounds:
        return None
    there = next(part for part in (Path(value), *Path(value).parents, Path()) if os.path.lexists(part))
    is_file = os.path.exists(there) and not os.path.isdir(there)
    return f"{there} is a file; expected a folder" if is_file else None


def _resolved(tree: Any, key: str, place: str) -> Any:
    try:
        value = OmegaConf.select(tree, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        found = ((re.search(pattern, str(error)), words) for pattern, words in UNRESOLVED.items())
        reasons = (words.format(as_given("".join(match.groups()))) for match, words in found if match)
        raise UserError(f"{place} cannot be resolved: {next(reasons, EXPECTED_REFERENCE)}") from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def save_config(config: Any, path: Path) -> None:
    """Write every setting of a configuration, defaults included, as YAML."""
    with whole_file(path) as file:
        file.write(OmegaConf.to_yaml(asdict(config)).encode())


def describe(schema: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every setting of a program, in the order of their definition."""
    for key, setting in settings_of(schema).items():
        default = {MISSING: "required", "None": "null", "": "''"}.get(str(setting.default), str(setting.default))
        meaning = f"{_meanings(setting.owner)[setting.name]} {described_bounds(setting.bounds)}"
        yield key, type_name(setting.kind), default, meaning.rstrip()


def meaning_of_group(schema: type, group: str) -> str:
    """Return what a group of settings is, by its dotted key: the text below its field, or that of its class."""
    owner, meaning = schema, ""
    for name in group.split("."):
        kind: type = type(getattr(owner(), name))
        owner, meaning = kind, _meanings(owner).get(name) or kind.__doc__ or ""
    return meaning


@cache
def _meanings(schema: type) -> dict[str, str]:
    """Return the texts below the fields of a dataclass, and of those that it inherits from, by name."""
    found: dict[str, str] = {}
    for one in (part for part in reversed(schema.__mro__) if is_dataclass(part)):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, below in itertools.pairwise(definition.body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def read_yaml(file: Path) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, is no YAML or holds something else.
    """
    values = natural(_read_mapping(file))
    assert isinstance(values, dict)
    return values


def _read_mapping(file: Path) -> dict[str, Values]:
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
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}; expected a text file in UTF-8"
        raise UserError(f"{as_given(str(file))}: cannot be read: {reason}") from error
    values = values_of(text, f"{file}:")
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{file}: expected settings of the form `key: value`")
    return values or {}


def _read_override(word: str, schema: type) -> dict[str, Values]:
    """Return what a word `key=value` says, as nested dictionaries."""
    key, equals, text = word.partition("=")
    place = f"{COMMAND_LINE}: {shortened(word)}"
    if not key or not equals:
        raise UserError(f"{place} is not of the form key=value")
    if not all(part.strip() for part in key.split(".")):
        raise UserError(f"{place} has an empty part before = or between dots")
    if any("\ud800" <= character <= "\udfff" for character in word):
        raise UserError(f"{place} is not UTF-8; expected text, so rename what it names")
    setting = settings_of(schema).get(key)
    is_literal = setting is not None and _is_literal(text, setting)
    return _nested(key, text if is_literal else values_of(text, place))


def _is_literal(text: str, setting: Setting) -> bool:
    """Say whether a word's text is meant as it is, though YAML would read something else."""
    if text == "":
        return bool(setting.default == "")
    if not type_name(setting.kind).startswith("str") or text[0] in "'\"":
        return False
    # Of what is read patterns may begin so: `*.jpg`, `[ab].png`.
    is_read = (LOCAL in setting.bounds or FAR in setting.bounds) and FOLDER not in setting.bounds
    # For YAML a comment begins there.
    return (is_read and glob.has_magic(text)) or ("#" in text and text[0] not in "[{")
